# docs/papers.md names tests that exist, and every one of its equations has at least one.
# Entry points: pytest.
# A test is named by file under test/, or by file::function; it is looked for without importing it.
"""Guard of docs/papers.md."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`((?:[\w-]+/)*test_\w+\.py)(?:::(\w+))?`")


def missing(text: str, tests: Path) -> list[str]:
    """Tests named in the page that are not under `tests`, and rows of its tables that name none."""
    found = []
    for file, function in NAMED.findall(text):
        path = tests / file
        if not path.is_file():
            found.append(f"{file}: no such file")
        elif function and not re.search(rf"^def {function}\(", path.read_text(encoding="utf-8"), re.M):
            found.append(f"{file}: no function {function}")
    rows = [line for line in text.splitlines() if re.match(r"\| (?!source )", line)]
    return found + [f"no test: {row[:60]}" for row in rows if not NAMED.search(row.rsplit(" | ", 1)[-1])]


def test_every_test_named_in_the_page_exists() -> None:
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert len(NAMED.findall(text)) > 25
    assert missing(text, ROOT / "test") == []


def test_a_planted_row_without_its_test_is_seen() -> None:
    rows = (
        "| source | equation | symbol | test |\n|---|---|---|---|\n"
        "| a | b | c | `guards/test_papers.py::test_every_test_named_in_the_page_exists` |\n"
        "| a | b | c | `guards/test_nothing.py` |\n"
        "| a | b | c | `guards/test_papers.py::test_nothing` |\n"
        "| a | b | c | by hand |\n"
    )
    found = missing(rows, ROOT / "test")
    assert [line.split(":")[0] for line in found] == ["guards/test_nothing.py", "guards/test_papers.py", "no test"]
