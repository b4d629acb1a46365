# What every plugin of every kind keeps: one class, defaults, described fields, the same object back from its section.
# Entry points: pytest. A new plugin is found by its file; nothing is to be added here.
# The contract of one kind is in the file of its name beside this one.
"""Contract of all plugins."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import Field

from hildanext import registry
from hildanext.errors import ConfigError
from hildanext.registry import Plugin, build, names

ALL = [(kind, name) for kind in sorted(registry.KINDS) for name in names(kind)]


def broken_promises(plugin: Any) -> list[str]:
    """What is wrong with a plugin built from its defaults."""
    found = [] if (type(plugin).__doc__ or "").strip() else ["the class has no docstring"]
    found += [
        f"{name} has no description" for name, field in type(plugin).model_fields.items() if not field.description
    ]
    section = json.loads(json.dumps(plugin.model_dump(mode="json")))
    return found + ([] if type(plugin).model_validate(section) == plugin else ["its JSON is another plugin"])


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_plugin_has_defaults_and_says_what_its_fields_are(kind: str, name: str) -> None:
    assert broken_promises(build(kind, {"type": name})) == []


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_an_unknown_field_is_an_error_that_names_the_place(kind: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind}[^\n]*1 problem\\n  no_such_field: unknown key"):
        build(kind, {"type": name, "no_such_field": 1})


def test_a_planted_field_without_a_description_is_seen() -> None:
    class Silent(Plugin):
        """Says nothing of its field."""

        size: int = 1
        place: str = Field("here", description="where")

    assert broken_promises(Silent()) == ["size has no description"]
