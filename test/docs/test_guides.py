# The guides' commands are real commands with real flags, and the plugin example works as printed.
# Entry points: pytest.
# Commands are parsed by the program's own parser, not run; README's are run by test/guards/test_readme.py.
"""Tests of docs/*.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from hildanext import cli, registry
from hildanext.decoding.request import Request
from hildanext.errors import HildaError
from hildanext.measure.task import EvalContext, Task

FENCES = re.compile(r"^```(\w*)\n(.*?)^```|((?:^    \S.*\n)+)", re.M | re.S)
PLACEHOLDERS = re.compile(r"\.\.\.|FOLDER|SHARDS|brevity")


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `hildanext ...` line of a page's code blocks; lines are joined until quotes close."""
    for language, fenced, indented in FENCES.findall(text):
        pending = ""
        if language not in ("", "sh", "text"):
            continue
        for line in (fenced or indented).replace("\\\n", " ").splitlines():
            pending = f"{pending}\n{line}" if pending else line.strip()
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:
                continue
            pending = ""
            if "hildanext" in words[:1] or words[1:3] == ["-m", "hildanext"]:
                yield words[words.index("hildanext") + 1 :]


def pages(project: Path) -> dict[str, str]:
    return {page.name: page.read_text(encoding="utf-8") for page in (project / "docs").glob("*.md")}


def test_every_command_of_the_guides_is_understood(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong, seen = [], 0
    for name, text in pages(project).items():
        for words in commands(text):
            seen += 1
            try:
                cli.parser().parse_args(words)
            except SystemExit:
                wrong.append(f"{name}: hildanext {' '.join(words)}: {capsys.readouterr().err.splitlines()[-1]}")
    assert not wrong and seen > 20


def test_a_command_after_a_python_block_is_seen() -> None:
    text = "```python\nimport hildanext\n```\n\n```\nhildanext doctor --json\n```\n\n```toml\nhildanext = 1\n```\n"
    assert list(commands(text)) == [["doctor", "--json"]]


def test_a_planted_wrong_flag_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    found = list(commands("```\nhildanext doctor --no-such-flag   # wrong\n```\n"))
    with pytest.raises(SystemExit):
        cli.parser().parse_args(found[0])


def test_the_settings_the_guides_name_exist(project: Path) -> None:
    from hildanext.config import load_config
    from hildanext.registry import plugin_problems

    wrong = []
    for name, text in pages(project).items():
        for words in commands(text):
            settings = [value for flag, value in zip(words, words[1:], strict=False) if flag == "--set"]
            real = [value for value in settings if not PLACEHOLDERS.search(value)]
            try:
                load_config(None, real, check=plugin_problems)
            except HildaError as error:
                wrong.append(f"{name}: {real}: {error}")
    assert not wrong


def test_the_page_on_plugins_names_every_kind_with_its_folder_and_base(project: Path) -> None:
    rows = re.findall(r"^\| (\w+) \| `([\w/]+)` \| `([\w.]+)` \|", pages(project)["plugins.md"], re.M)
    assert {kind: f"hildanext.{folder.replace('/', '.')}" for kind, folder, _ in rows} == registry.KINDS
    for kind, _, base in rows:
        module, _, name = base.rpartition(".")
        wanted = getattr(import_module(f"hildanext.{module}"), name)
        assert all(issubclass(registry.load(kind, one), wanted) for one in registry.names(kind)), kind


def test_the_plugin_example_runs_as_printed(project: Path, scripted: Callable[..., EvalContext]) -> None:
    source = re.search(r"```python\n(.*?)```", pages(project)["plugins.md"], re.S)
    assert source is not None
    space: dict[str, Any] = {"__name__": "example"}
    exec(compile(source.group(1), "plugins.md", "exec"), space)
    task: Task = space["Brevity"](limit=4)
    context = scripted(lambda request: "fox" if request.sample % 2 else "a fox")
    assert task.run(context).measures["one_word"].value == 0.5
    assert isinstance(context.generator.asked[0], Request)  # type: ignore[attr-defined]
