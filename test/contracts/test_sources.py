# What every source keeps: units in a fixed order, the same documents each time, an error that says what would serve.
# Entry points: pytest. A new source is found by its file.
# Sources of files are pointed at a folder by their environment variable, as a reader would; nothing is fetched.
"""Contract of the sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from hildanext.data.document import BadRow, Document
from hildanext.data.source import Source, Unit
from hildanext.errors import DataError
from hildanext.registry import build, names

NAMES = names("sources")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of three rows, the last without a text, named by every source's variable."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "Tom had a red ball."}, {"text": "Lily ran."}, {"text": 7}]
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in NAMES:
        monkeypatch.setenv(f"HILDANEXT_{name.upper()}", str(folder))
    return folder


def broken_promises(source: Any) -> list[str]:
    """What is wrong with the units and the first rows of a source."""
    units, again = source.units(), source.units()
    found = [] if units and units == again else ["no units, or others the second time"]
    first = list(islice(source.read(units[0]), 5))
    found += [] if first and first == list(islice(source.read(units[0]), 5)) else ["no rows, or others the second time"]
    if not any(isinstance(row, Document) for row in first):
        found.append("no document among the first rows")
    found += ["a row that is neither document nor bad row" for row in first if not isinstance(row, Document | BadRow)]
    return found + ([] if json.dumps(source.version()) == json.dumps(source.version()) else ["its version changes"])


@pytest.mark.parametrize("name", NAMES)
def test_a_source_gives_the_same_documents_each_time(name: str, files: Path) -> None:
    assert broken_promises(build("sources", {"type": name})) == []


@pytest.mark.parametrize("name", NAMES)
def test_without_its_files_a_source_says_on_one_line_what_would_serve(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(f"HILDANEXT_{name.upper()}", raising=False)
    source = build("sources", {"type": name})
    try:
        assert broken_promises(source) == []
    except DataError as error:
        text = str(error)
        assert f"source {name}" in text and f"HILDANEXT_{name.upper()}" in text and len(text.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_planted_source_with_other_rows_each_time_is_seen() -> None:
    served = iter(range(100))

    class Restless(Source):
        """Another text at every reading."""

        def units(self) -> list[Unit]:
            return [Unit("one")]

        def read(self, unit: Unit) -> Iterator[Document | BadRow]:
            yield BadRow(f"text {next(served)}", "a", 1)

    found = broken_promises(Restless())
    assert found == ["no rows, or others the second time", "no document among the first rows"]
