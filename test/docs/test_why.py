# docs/why.md's figures say what the tables of docs/results.md say, number by number.
# Entry points: pytest.
# A number that no row says is planted in a copy of an entry; the pictures are drawn, not compared.
"""Tests of docs/why.py."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType

import pytest
from scripts import script


@pytest.fixture(scope="module")
def why(project: Path) -> ModuleType:
    return script(project / "docs" / "why.py")


def test_every_number_of_a_figure_stands_in_the_row_it_names(why: ModuleType, project: Path) -> None:
    results = (project / "docs" / "results.md").read_text(encoding="utf-8")
    entries = why.figures()
    assert len(entries) == 5 and [fault for one in entries for fault in why.missing(one, results)] == []
    page = (project / "docs" / "why.md").read_text(encoding="utf-8")
    for one in entries:
        assert f"(images/{one['file']})" in page and (project / "docs" / "images" / one["file"]).is_file()


def test_planted_errors_are_noticed(why: ModuleType, project: Path) -> None:
    results = (project / "docs" / "results.md").read_text(encoding="utf-8")
    entry = why.figures()[0]
    other = copy.deepcopy(entry)
    other["series"][0]["points"][0]["y"] = "99.9"
    assert why.missing(other, results) == [
        f"{entry['file']}: {entry['series'][0]['points'][0]['row']!r} does not say 99.9"
    ]
    other = copy.deepcopy(entry)
    other["series"][0]["points"][0]["row"] = "| nobody"
    assert len(why.missing(other, results)) == 1
    assert why.missing({**entry, "section": "Nowhere"}, results)


def test_a_number_is_not_found_inside_another_one(why: ModuleType) -> None:
    entry = {"file": "f", "section": "S", "series": [{"points": [{"row": "| a |", "x": "1.2"}]}]}
    assert why.missing(entry, "## S\n\n| a | 11.25 | 1.23 |") and not why.missing(entry, "## S\n\n| a | 1.2 |")
    assert why.missing(entry, "## S\n\n| a | 3 |\n\n## T\n\n| a | 1.2 |")
