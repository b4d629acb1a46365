# The example scripts run as a reader would run them, and leave the picture they promise.
# Entry points: pytest.
# They run in this process, so that torch is imported once; each must stay within 40 lines.
"""Tests of examples/."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    path = next(path for path in EXAMPLES if path.stem == name)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")


def test_an_own_policy_is_compared_with_the_modes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("own_policy", monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["threshold_edit"] * 2 + ["Falling"] * 4


def test_an_own_objective_lowers_its_loss(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_objective", monkeypatch)
    losses = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 3 and losses == sorted(losses, reverse=True)


def test_steps_against_quality_is_a_png(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("steps_against_quality", monkeypatch, str(tmp_path / "steps.png"), "1")
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("tokens per forward") == 10


def test_a_decode_is_an_animation_of_every_forward(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("decode_animation", monkeypatch, str(tmp_path / "decode.svg"), "Tom had")
    steps = int(capsys.readouterr().out.split(", ")[1].split()[0])
    drawn = ElementTree.parse(tmp_path / "decode.svg").getroot()
    assert len(drawn.findall("{http://www.w3.org/2000/svg}g")) == steps + 1 > 5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_imports_public_names_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 40
    imported = [
        part
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (alias.name for alias in node.names)
        for part in f"{getattr(node, 'module', '')}.{name}".split(".")
    ]
    assert not [part for part in imported if part.startswith("_")]
