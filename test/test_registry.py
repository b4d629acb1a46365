# Plugins: listed without import, built from their section, broken ones break only themselves, third parties add theirs.
# Entry points: pytest.
# Small plugin packages are written into a temporary folder.
"""Tests of hildanext.registry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hildanext import registry
from hildanext.errors import ConfigError

GOOD = """from hildanext.registry import Plugin

class Good(Plugin):
    size: int = 1
"""


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "plugins_of_test"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "good": GOOD,
        "broken": "import nothing_of_that_name\n",
        "two": GOOD + GOOD.replace("Good", "Other"),
    }.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.KINDS, "things", "plugins_of_test")
    for name in [name for name in sys.modules if name.startswith("plugins_of_test")]:
        monkeypatch.delitem(sys.modules, name)
    return package


def test_listing_reads_file_names_only(kind: Path) -> None:
    assert registry.names("things") == ["broken", "good", "two"]
    assert "plugins_of_test.broken" not in sys.modules


def test_a_section_builds_its_plugin(kind: Path) -> None:
    plugin = registry.build("things", {"type": "good", "size": 3})
    assert type(plugin).__name__ == "Good" and plugin.size == 3


def test_a_broken_plugin_breaks_only_itself(kind: Path) -> None:
    with pytest.raises(ConfigError, match="broken.*nothing_of_that_name.*others still work"):
        registry.build("things", {"type": "broken"})
    assert registry.build("things", {"type": "good"}).size == 1


def test_an_unknown_name_or_field_suggests_the_nearest(kind: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'good'"):
        registry.build("things", {"type": "goood"})
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        registry.build("things", {"type": "good", "sise": 1})
    with pytest.raises(ConfigError, match="'type' is missing"):
        registry.build("things", {})


def test_a_file_with_two_plugins_is_refused(kind: Path) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        registry.load("things", "two")


def test_third_parties_add_plugins_by_entry_point(kind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "theirs"

        def load(self) -> Any:
            return type("Theirs", (registry.Plugin,), {"__module__": "elsewhere"})

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry()] if group == "hildanext.things" else [])
    assert registry.names("things") == ["broken", "good", "theirs", "two"]
    assert registry.load("things", "theirs").__name__ == "Theirs"


@pytest.mark.parametrize("kind_name", sorted(registry.KINDS))
def test_every_own_plugin_loads_and_has_defaults_or_says_what_it_needs(kind_name: str) -> None:
    for name in registry.names(kind_name):
        assert issubclass(registry.load(kind_name, name), registry.Plugin)
