# The notebooks of examples/ run from top to bottom, as Jupyter would run them, and carry no outputs.
# Entry points: pytest.
# What the last line of a cell shows is asked for its picture, which is what a notebook does with it.
"""Tests of examples/*.ipynb."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.ipynb"))


def executed(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line where that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_promises(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 3 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    names: dict[str, Any] = {}
    shown = [executed("".join(cell["source"]), names) for cell in cells]
    pictures = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert len(pictures) == 1 and "script&gt;" in pictures[0]
    said = capsys.readouterr().out
    likely, unlikely = (float(line.split()[0]) for line in said.splitlines() if " of 6." in line)
    assert likely < unlikely and said.count("forwards") >= 4


def test_there_is_a_notebook() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["tour"]
