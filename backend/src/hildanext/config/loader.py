# Config files: JSON with "extends", keys // as comments, placeholders ${HILDANEXT_...}, --set a.b=value overrides.
# Entry points: load_config, resolved_json. Precedence: default < extends < file < --set.
# All problems are collected and raised together; an override's type comes from the schema. Files written before a key
# moved still load; --set names the new place.
"""Reading and merging configuration files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hildanext.config.base import PluginSection
from hildanext.config.nearest import MOVED, describe, model_at, nearest
from hildanext.config.root import OWNED, Config
from hildanext.errors import ConfigError, problems

RETIRED = ("data.humaneval_rows",)
PLACEHOLDER = re.compile(r"\$\{([A-Za-z0-9_]+)\}")


def load_config(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    check: Callable[[Mapping[str, Any]], list[str]] | None = None,
    admit: Callable[[Path], None] | None = None,
) -> Config:
    """The resolved configuration: defaults, then `base`, then the file and what it extends, then `a.b=value` overrides.
    `check` finds problems the schema cannot see (registry.plugin_problems); `admit` raises for a file that may not be
    read, the extended ones too. ConfigError names every problem at once."""
    found: list[str] = []
    values = merge(dict(base or {}), _read(path, (), admit) if path is not None else {})
    for override in overrides:
        _apply(values, override, found)
    values = _substitute(values, "", found)
    found += check(values) if check is not None else []
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise problems(str(path or "--set"), found + describe(error, Config, "")) from error
    if found:
        raise problems(str(path or "--set"), found)
    return config


def resolved_json(config: Config, command: str | None = None) -> str:
    """The configuration as indented JSON, every default written out; for a command (or one of its parts, as in
    bench-train) without the sections that other commands alone read."""
    foreign = {name for name, owner in OWNED.items() if command is not None and not command.startswith(owner)}
    return json.dumps(config.model_dump(mode="json", exclude=foreign), indent=2) + "\n"


def merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`: sections merge key by key; a plugin of another type replaces the section whole."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        same = (
            isinstance(old, dict)
            and isinstance(value, Mapping)
            and value.get("type", old.get("type")) == old.get("type")
        )
        result[key] = merge(old, value) if same and isinstance(old, dict) else value
    return result


def _read(path: Path, seen: tuple[Path, ...], admit: Callable[[Path], None] | None = None) -> dict[str, Any]:
    if admit is not None:
        admit(path)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: 'extends' goes in a circle; break it at one of {', '.join(str(p) for p in seen)}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: the config cannot be read ({error.strerror}); see runs/configs/ for presets"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); correct that place") from error
    values = _uncommented(values)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a JSON object, found {type(values).__name__}")
    _upgrade(values)
    parents = values.pop("extends", [])
    result: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        result = merge(result, _read(path.parent / parent, (*seen, path.resolve()), admit))
    return merge(result, values)


def _uncommented(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _uncommented(item) for key, item in value.items() if not key.startswith("//")}
    return [_uncommented(item) for item in value] if isinstance(value, list) else value


def _upgrade(values: dict[str, Any]) -> None:
    for old, new in (*MOVED.items(), *((place, "") for place in RETIRED)):
        section, _, key = old.partition(".")
        below = values.get(section)
        if not isinstance(below, dict) or key not in below:
            continue
        values[section] = {name: value for name, value in below.items() if name != key}
        if new:
            place, _, name = new.partition(".")
            values[place] = {name: below[key], **values.get(place, {})}


def _apply(values: dict[str, Any], override: str, found: list[str]) -> None:
    place, separator, text = override.partition("=")
    keys = place.strip().split(".")
    if not separator or not all(keys):
        found.append(f"--set {override}: expected a.b=value")
        return
    here = values
    for depth, key in enumerate(keys[:-1]):
        child = here.get(key)
        here[key] = dict(child) if isinstance(child, dict) else _default_plugin(keys[: depth + 1])
        here = here[key]
    if keys[-1] == "type":
        here.clear()
    here[keys[-1]] = _typed(keys, text)


def _default_plugin(keys: list[str]) -> dict[str, Any]:
    section = model_at(Config, keys[:-1])
    field = section.model_fields.get(keys[-1]) if section is not None else None
    return field.default.model_dump() if field is not None and isinstance(field.default, PluginSection) else {}


def _typed(keys: list[str], text: str) -> Any:
    section = model_at(Config, keys[:-1])
    field = section.model_fields.get(keys[-1]) if section is not None else None
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        return text
    candidates = [parsed] if isinstance(parsed, dict | list) else [parsed, text]
    if field is None or field.annotation is None:
        return parsed
    for candidate in candidates:
        try:
            TypeAdapter(field.annotation).validate_python(candidate)
            return candidate
        except ValidationError:
            continue
    return candidates[0]


def _substitute(value: Any, place: str, found: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, f"{place}.{key}".lstrip("."), found) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, f"{place}.{i}", found) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    for name in PLACEHOLDER.findall(value):
        if not name.startswith("HILDANEXT_"):
            found.append(f"{place}: ${{{name}}} is not allowed, placeholders begin with HILDANEXT_")
        elif name not in os.environ:
            known = [key for key in os.environ if key.startswith("HILDANEXT_")]
            hint = nearest(name, known) if known else "set it"
            found.append(f"{place}: environment variable {name} is not set; {hint}")
        else:
            value = value.replace(f"${{{name}}}", os.environ[name])
    return value
