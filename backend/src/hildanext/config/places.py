# Single values of a resolved configuration by their dotted place: is there one, was it given, another one.
# Entry points: exists, given, value_at, with_values.
# What was said by a file, a flag or --set is in model_fields_set; a changed copy keeps that.
"""Values by place."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hildanext.config.nearest import describe, model_at
from hildanext.config.root import Config
from hildanext.errors import problems


def exists(place: str) -> bool:
    """Whether the configuration has a value there ("decode.block")."""
    *sections, name = place.split(".")
    section = model_at(Config, sections)
    return section is not None and name in section.model_fields


def given(config: Config, place: str) -> bool:
    """Whether somebody said the value: it is no default."""
    here: Any = config
    for name in place.split("."):
        if name not in here.model_fields_set:
            return False
        here = getattr(here, name)
    return True


def value_at(config: Config, place: str) -> Any:
    """The value there. AttributeError where there is none."""
    here: Any = config
    for name in place.split("."):
        here = getattr(here, name)
    return here


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values by place, checked; they count as given. ConfigError with every problem."""
    said = config.model_dump(exclude_unset=True)
    for place, value in values.items():
        *sections, name = place.split(".")
        here = said
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = value
    try:
        return Config.model_validate(said)
    except ValidationError as error:
        raise problems("values", describe(error, Config, "")) from error
