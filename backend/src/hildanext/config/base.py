# The two base classes of every configuration section.
# Entry points: Section (fixed fields), PluginSection ({"type": name, ...fields of that plugin}), SEEDS.
# Frozen, unknown keys forbidden: a typo is an error, and a config can be shared between threads. Numbers are finite.
"""Base classes of configuration sections."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

SEEDS = 1 << 63
"""Seeds are below this: what the generators of torch and numpy take."""


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error. renamed: former keys and the keys that took their place,
    which the error names."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)
    renamed: ClassVar[dict[str, str]] = {}


class PluginSection(BaseModel):
    """{"type": name, ...}: the other keys are the fields of the plugin of that name, checked when it is built."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    by_name: ClassVar[bool] = False
    """Whether the name alone, as text, stands for {"type": name}."""
    type: str
