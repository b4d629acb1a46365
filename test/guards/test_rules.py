# The source tree keeps the house rules, and every rule can fail.
# Entry points: pytest.
# Each rule is run over the package and over a small tree with one planted fault.
"""Guards over the source tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guards import rules

HEADER = "# one\n# two\n# three\n"
LONG = "def f() -> int:\n" + "".join(f"    x = {i}\n" for i in range(60)) + "    return x\n"
FAULTS: list[tuple[Callable[[Path], list[str]], str, str, str]] = [
    (rules.layers, "core/bad.py", HEADER + "from hildanext.decoding.engine import x\n", "core imports decoding"),
    (rules.layers, "core/bad.py", HEADER + "def f():\n    import hildanext.api.app\n", "core imports api"),
    (rules.layers, "train/bad.py", HEADER + "from . import loop\n", "relative import"),
    (rules.heavy_imports, "config/bad.py", HEADER + "import torch\n", "imports torch"),
    (rules.headers, "core/bad.py", '"""No header."""\n', "comment lines"),
    (rules.headers, "core/bad.py", "# de" + "coding: a thing\n# two\n# three\n", "encoding declaration"),
    (rules.sizes, "core/bad.py", HEADER + "x = 1\n" * 301, "lines"),
    (rules.sizes, "core/bad.py", HEADER + LONG, "f has"),
    (rules.sizes, "core/bad.py", HEADER + "def f(a, b, c, d, e, g, h): ...\n", "parameters"),
    (rules.docstrings, "core/bad.py", HEADER + "def f(): ...\n", "no docstring"),
    (rules.docstrings, "core/bad.py", HEADER + "class C:\n    '''Doc.'''\n\n    def f(self): ...\n", "no docstring"),
    (rules.shapes, "core/bad.py", HEADER + "def f():\n    def g(): ...\n    g()\n", "nested"),
    (rules.shapes, "core/bad.py", HEADER + "def f():\n    x = 1\n\n    return x\n", "blank line"),
]
RULES = [rules.layers, rules.heavy_imports, rules.headers, rules.sizes, rules.docstrings, rules.shapes]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Callable[[Path], list[str]], project: Path) -> None:
    assert rule(project / "backend" / "src" / "hildanext") == []


@pytest.mark.parametrize(
    ("rule", "name", "text", "expected"), FAULTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_the_rule_sees_a_planted_fault(
    rule: Callable[[Path], list[str]], name: str, text: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    found = rule(tmp_path)
    assert len(found) >= 1 and expected in found[0]


def test_the_tests_open_with_a_header(project: Path) -> None:
    assert rules.headers(project / "test") == []
