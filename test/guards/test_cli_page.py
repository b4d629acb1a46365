# docs/cli.md is what the parser says now.
# Entry points: pytest; `python docs/cli.py` rewrites the page.
# The page is checked against the surface too, so that the writer cannot leave out a flag unseen.
"""Guard of docs/cli.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import script


@pytest.fixture(scope="module")
def writer(project: Path) -> Any:
    return script(project / "docs" / "cli.py")


def test_the_page_is_what_the_parser_says(project: Path, writer: Any) -> None:
    assert (project / "docs" / "cli.md").read_text(encoding="utf-8") == writer.page(), "run `python docs/cli.py`"


def test_every_flag_of_every_command_is_on_the_page(project: Path) -> None:
    text = (project / "docs" / "cli.md").read_text(encoding="utf-8")
    common = text.partition("## Flags of every command")[2].partition("\n## ")[0]
    recorded = json.loads((project / "test" / "guards" / "cli_surface.json").read_text())
    for command, flags in recorded.items():
        section = text.partition(f"\n## {command}\n")[2].partition("\n## ")[0]
        missing = [flag for flag in flags if flag != "--help" and flag not in (section + common).lower()]
        assert section and not missing, (command, missing)
