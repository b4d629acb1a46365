# No test gives another thread, process or page less than a minute: on a loaded machine that is what starting one takes.
# Entry points: pytest.
# Read from the syntax tree: timeout=, wait(), join() and result() with a number, and a clock with a number added.
"""Limits of time in the tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

LEAST = 60
NUMBER = re.compile(r"(?:timeout=|\.(?:wait|join|result)\(|\(\) \+)\s*\d")
"""What a file without it need not be parsed for."""
TESTS = Path(__file__).parents[1]


def hasty(text: str) -> list[int]:
    """Lines with a limit under LEAST seconds."""
    found = list[int]()
    for node in ast.walk(ast.parse(text)) if NUMBER.search(text) else ():
        limits = list[ast.expr]()
        if isinstance(node, ast.Call):
            limits = [one.value for one in node.keywords if one.arg == "timeout"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("wait", "join", "result"):
                limits += node.args
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and isinstance(node.left, ast.Call):
            limits = [node.right] if ast.unparse(node.left).endswith(("monotonic()", "time.time()")) else []
        found += [one.lineno for one in limits if isinstance(one, ast.Constant) and _short(one.value)]
    return found


def _short(value: object) -> bool:
    return isinstance(value, int | float) and value < LEAST


def test_no_test_is_in_a_hurry() -> None:
    files = {str(path.relative_to(TESTS)): path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py")}
    assert len(files) > 200
    assert {name: lines for name, text in files.items() if (lines := hasty(text))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "child.wait(10)",
        "a.join(5.0)",
        "get(url, timeout=5)",
        "work.result(timeout=20)",
        "until = time.monotonic() + 30",
    ],
)
def test_a_planted_hurry_is_seen(line: str) -> None:
    assert hasty(line) == [1]


def test_patience_is_no_hurry() -> None:
    assert hasty("child.wait(PATIENCE)\nget(url, timeout=60)\n', '.join(a)\nuntil = time.monotonic() + PATIENCE") == []
