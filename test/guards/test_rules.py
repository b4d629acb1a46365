# The source tree keeps the house rules, and every rule can fail.
# Entry points: pytest.
# Each rule is run over the package and over a small tree with one planted fault.
"""Guards over the source tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guards import prose, rules

HEADER = "# one\n# two\n# three\n"
LONG = "def f() -> int:\n" + "".join(f"    x = {i}\n" for i in range(60)) + "    return x\n"
LINES = "        x = 1\n" * 10


def cited(source: str) -> str:
    """A function whose docstring names a source."""
    return f'def f() -> None:\n    """What it computes. Source: {source}."""\n'


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
    (rules.layers, "train/bad.py", HEADER + "from hildanext.engines.protocol import x\n", "train imports engines"),
    (rules.shapes, "core/bad.py", HEADER + f"def f():\n    def g():\n{LINES}    g()\n", "nested"),
    (rules.shapes, "core/bad.py", HEADER + "def f():\n    x = 1\n\n    return x\n", "blank line"),
    (rules.guessed_attributes, "core/bad.py", HEADER + "getattr(model, 'shift', 'none')\n", "guesses what model"),
    (rules.guessed_attributes, "train/bad.py", HEADER + "getattr(a.denoiser, 'x', 0)\n", "guesses what a.denoiser"),
    (rules.learning_rate_reads, "train/bad.py", HEADER + "c.optimizer.lr\nc.lr\n", "c.lr reads"),
    (rules.learning_rate_reads, "bench/bad.py", HEADER + "c.optimizer.lr\nc.optimizer.lr\n", "c.optimizer.lr reads"),
    (prose.citations, "core/bad.py", HEADER + cited("recipe 2.2"), "outside the repository"),
    (prose.citations, "core/bad.py", HEADER + cited("LLaDA2.0 eq. 1, training_infra D.4"), "outside the repository"),
    (prose.citations, "core/bad.py", "# one\n# two (acceleration 9)\n# three\n", "outside the repository"),
    (prose.citations, "core/bad.py", HEADER + cited("see windows.md"), "outside the repository"),
    (prose.citations, "core/bad.py", HEADER + cited("an old notebook"), "leads nowhere"),
    (prose.citations, "core/bad.py", HEADER + cited("LLaDA3.0 eq. 1"), "leads nowhere"),
    (prose.citations, "core/bad.py", HEADER + cited("docs/no-such-page.md"), "no such page"),
    (prose.citations, "core/bad.py", HEADER + cited("docs/how-it-works.md#no-such-heading"), "no such page or heading"),
    (prose.entry_points, "core/bad.py", "# one\n# Entry points: there, gone (a, b).\n# three\nthere = 1\n", "no gone"),
    (prose.entry_points, "core/__init__.py", "# one\n# Entry points: gone.\n# three\n", "no gone"),
]
RULES = [
    rules.layers, rules.heavy_imports, rules.headers, rules.sizes, rules.docstrings, rules.shapes,
    rules.guessed_attributes, rules.learning_rate_reads, prose.citations, prose.entry_points,
]  # fmt: skip
KEPT: list[tuple[Callable[[Path], list[str]], str]] = [
    (rules.shapes, "def f():\n    def g():\n        return 1\n    return g() + 1\n"),
    (rules.shapes, "def f():\n" + "    x = 1\n" * 12 + "\n" + "    y = 2\n" * 3),
    (rules.guessed_attributes, "getattr(model, 'shift')\ngetattr(options, 'shift', 'none')\n"),
    (rules.learning_rate_reads, "config.optimizer.lr\n"),
    (
        prose.citations,
        cited("LLaDA2.0 eq. 1") + cited("arXiv:2512.15745 sec. 2") + cited("docs/how-it-works.md#decoding"),
    ),
]


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


@pytest.mark.parametrize(("rule", "text"), KEPT, ids=lambda value: getattr(value, "__name__", None))
def test_the_rule_lets_pass_what_is_allowed(rule: Callable[[Path], list[str]], text: str, tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "good.py").write_text(HEADER + text)
    assert rule(tmp_path) == []


@pytest.mark.parametrize("page", ["README.md", "DESIGN.md", "backend/README.md", "docs"])
def test_the_pages_name_no_note_outside_the_repository(page: str, project: Path) -> None:
    path = project / page
    for text in (one.read_text(encoding="utf-8") for one in (path.glob("*.md") if path.is_dir() else [path])):
        assert prose.note_mentions(text) == []


def test_the_links_of_the_pages_lead_somewhere(project: Path) -> None:
    pages = [*project.glob("*.md"), *(project / "docs").glob("*.md"), *(project / "models").rglob("*.md")]
    assert len(pages) > 20 and [link for page in pages for link in prose.dead_links(page)] == []


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One heading: here\n\n```\n# no heading\n```\n", encoding="utf-8")
    page = tmp_path / "a.md"
    links = ["b.md", "b.md#one-heading-here", "https://no.where/a.md#b", "b.md#no-heading", "c.md", "#two"]
    page.write_text("# One\n" + " ".join(f"[x]({link})" for link in links), encoding="utf-8")
    assert [found.split()[1] for found in prose.dead_links(page)] == ["b.md#no-heading", "c.md", "#two"]


def test_every_room_and_file_has_its_place_in_the_order(project: Path) -> None:
    package = project / "backend" / "src" / "hildanext"
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {room for room in rooms if not room.startswith("__")} <= set(rules.LAYERS)


def test_the_tests_open_with_a_header(project: Path) -> None:
    assert rules.headers(project / "test") == []
