# Plugins: one file per plugin, the file name is the name, the frozen config object is the implementation.
# Entry points: Plugin (base class), names(kind), load(kind, name), build(kind, section), plugin_problems(values).
# Listing reads file names and entry points `hildanext.<kind>` only; a plugin is imported when it is asked for. Packages
# are asked once per process: one installed meanwhile is known to the next.
"""Registry of plugins by kind and name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from hildanext.config.base import PluginSection, Section
from hildanext.config.nearest import describe, nearest, section_in
from hildanext.config.root import Config
from hildanext.errors import ConfigError, problems

KINDS = {
    "sources": "hildanext.data.sources",
    "executors": "hildanext.data.executors",
    "objectives": "hildanext.core.objectives",
    "policy_objectives": "hildanext.core.policy_objectives",
    "rewards": "hildanext.measure.rewards",
    "models": "hildanext.models.kinds",
    "mixers": "hildanext.models.mixers",
    "carries": "hildanext.core.carries",
    "policies": "hildanext.decoding.policies",
    "compressors": "hildanext.decoding.compressors",
    "engines": "hildanext.engines",
    "tasks": "hildanext.measure.tasks",
    "exports": "hildanext.export",
    "latents": "hildanext.latents",
}
NOT_PLUGINS = {"engines": {"protocol", "choose", "opening", "relay", "conversation", "task"}, "latents": {"drawing"}}


class Plugin(Section):
    """Base of every plugin: its fields are its configuration, its methods the implementation of the kind's protocol."""


def _folder(kind: str) -> Path:
    if kind not in KINDS:
        raise ValueError(f"registry: no kind {kind!r}, there are {sorted(KINDS)}")
    spec = find_spec(KINDS[kind])
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"registry: {KINDS[kind]} is not an installed package")
    return Path(next(iter(spec.submodule_search_locations)))


@lru_cache(maxsize=64)
def _installed(kind: str, found_by: Callable[..., Any]) -> tuple[Any, ...]:
    return tuple(
        found_by(group=f"hildanext.{kind}")
    )  # asked once: it reads what every installed package says of itself


def names(kind: str) -> list[str]:
    """The names of a kind's plugins, own files and entry points `hildanext.<kind>`, sorted; imports none of them."""
    own = {path.stem for path in _folder(kind).glob("*.py") if not path.stem.startswith("_")}
    theirs = {entry.name for entry in _installed(kind, entry_points)}
    return sorted((own - NOT_PLUGINS.get(kind, set())) | theirs)


def load(kind: str, name: str) -> type[Plugin]:
    """The plugin class. ConfigError where the name is unknown (with the nearest one) or its file cannot be imported."""
    known = names(kind)
    if name not in known:
        raise ConfigError(f"{kind}: no plugin {name!r}, {nearest(name, known, listed=True)}")
    for entry in _installed(kind, entry_points):
        if entry.name == name:
            return _single_class(entry.load(), name)
    try:
        module = importlib.import_module(f"{KINDS[kind]}.{name}")
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{kind}.{name}: the plugin cannot be imported ({error}); the others still work") from error
    return _single_class(module, name)


def _single_class(found: Any, name: str) -> type[Plugin]:
    if inspect.isclass(found) and issubclass(found, Plugin):
        return found
    own = [
        value
        for value in vars(found).values()
        if inspect.isclass(value) and issubclass(value, Plugin) and value.__module__ == found.__name__
    ]
    if len(own) != 1:
        raise ConfigError(f"{name}: a plugin file defines exactly one Plugin subclass, found {len(own)}")
    return own[0]


def build(kind: str, section: PluginSection | Mapping[str, Any], where: str = "") -> Any:
    """The plugin a section {"type": name, ...fields} describes. ConfigError with all of its problems."""
    values = dict(section.model_dump() if isinstance(section, PluginSection) else section)
    place = where or kind
    if "type" not in values:
        raise ConfigError(f"{place}: the key 'type' is missing; there are {', '.join(names(kind))}")
    plugin = load(kind, str(values.pop("type")))
    try:
        return plugin.model_validate(values)
    except ValidationError as error:
        raise problems(place, describe(error, plugin, "")) from error


def plugin_problems(values: Mapping[str, Any]) -> list[str]:
    """Problems of every plugin section of a raw configuration, each with its place; imports the plugins named."""
    return _problems_below(values, Config, "")


def _problems_below(values: Any, model: type[BaseModel], place: str) -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        section = section_in(field.annotation)
        if not isinstance(values, Mapping) or name not in values or section is None:
            continue
        for inner, item in _items(values[name], field.annotation):
            found += _section_problems(item, section, f"{place}{name}{inner}")
    return found


def _items(value: Any, annotation: Any) -> list[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        return [("", item) for item in value]
    if get_origin(annotation) is dict and isinstance(value, Mapping):
        return [(f".{name}", item) for name, item in value.items()]
    return [("", value)]


def _section_problems(item: Any, section: type[BaseModel], place: str) -> list[str]:
    if not issubclass(section, PluginSection):
        return _problems_below(item, section, f"{place}.")
    item = {"type": item} if section.by_name and isinstance(item, str) else item
    named = section.model_fields["type"].get_default()
    if not isinstance(item, Mapping) or not isinstance(item.get("type", named), str):
        return []
    try:
        plugin = load(str(getattr(section, "kind", "")), item.get("type", named))
        plugin.model_validate({key: value for key, value in item.items() if key != "type"})
    except ConfigError as error:
        return [f"{place}: {error}"]
    except ValidationError as error:
        return describe(error, plugin, f"{place}.")
    return []
