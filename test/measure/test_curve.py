# Thresholds chosen on one half and reported on the other: the choice by hand, halves that share nothing, a real pair.
# Entry points: pytest.
# What a setting measures is planted where the choice is tested.
"""Tests of the task curve."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.errors import DataError
from hildanext.measure.task import EvalContext
from hildanext.measure.tasks import curve
from hildanext.measure.tasks.curve import QUALITY, SPEED, Setting
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.report.intervals import Measure
from hildanext.world import corpus


def made(**fields: Any) -> Any:
    return build("tasks", {"type": "curve", **fields})


def measured(quality: float, speed: float) -> dict[str, Measure]:
    return {QUALITY: Measure(quality, quality, quality, 2), SPEED: Measure(speed, speed, speed, 2)}


def test_the_fastest_that_is_good_enough_is_chosen_else_the_fastest_near_the_best() -> None:
    a, b, c = (Setting(tau, None, 0, 0) for tau in (0.5, 0.7, 0.9))
    found = {a: measured(1.3, 4.0), b: measured(1.12, 3.0), c: measured(1.0, 1.5)}
    assert made(most=1.15).choice(found) == (c, b)
    assert made(most=1.4).choice(found) == (c, a)
    assert made(most=0.9).choice(found) == (c, c)
    assert made(most=0.9).choice(found | {b: measured(1.09, 3.0)}) == (c, b)


def test_without_editing_a_full_block_is_looked_at_once_only() -> None:
    grid = list(made(tau_mask=(0.5, 0.9), tau_edit=(0.5, None), looks=(2, 0), blocks=(0, 4)).settings())
    assert len(grid) == len(set(grid)) == 2 * 2 * (2 + 1)
    assert {one.max_post_steps for one in grid if one.tau_edit is None} == {0}


def test_the_choice_is_made_on_every_second_prompt_and_reported_on_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Setting, tuple[int, ...]]] = []

    def plant(beside: Any, context: Any, one: Setting, half: Any) -> dict[str, Measure]:
        asked.append((one, tuple(half)))
        return measured(2.0 - one.tau_mask + (0.5 if 1 in half else 0.0), 2 - one.tau_mask)

    monkeypatch.setattr(curve, "_measured", plant)
    monkeypatch.setattr(curve.Curve, "beside", lambda self, context: SimpleNamespace(prompts=range(5)))
    context: Any = SimpleNamespace(console=Console(), config=Config())
    found = made(tau_mask=(0.5, 0.9), tau_edit=(None,), looks=(0,), most=1.2).run(context)
    fast, careful = Setting(0.5, None, 0, 0), Setting(0.9, None, 0, 0)
    assert asked[:2] == [(fast, (0, 2, 4)), (careful, (0, 2, 4))] and asked[2] == (careful, (1, 3))
    assert found.measures[f"chosen, other half: {QUALITY}"].value == pytest.approx(1.6)
    assert found.measures[f"{fast.name()}: {QUALITY}"].value == pytest.approx(1.5)
    assert len(found.series["multiple"]) == 3 and found.counts["prompts of the report"] == 2
    said = capsys.readouterr().err
    line = said.split("export.format.decode=")[1].splitlines()[0].rstrip("'")
    assert json.loads(line) == {"Q_MODE": {"tau_mask": 0.9, "tau_edit": None, "max_post_steps": 0}}


def test_a_real_pair_is_measured_at_every_setting(tmp_path: Path) -> None:
    rows = [{"messages": list(record["messages"])} for record in corpus("chat", 6, 2)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = made(
        file=str(tmp_path / "p.jsonl"), parent="tiny-parent", max_new_tokens=8, tau_mask=(0.3, 1.0), tau_edit=(None,),
        looks=(0,), blocks=(4,),
    )  # fmt: skip
    task.ready()
    context = EvalContext.of(load_model(ModelConfig(path="tiny")), Config(), Console(quiet=True))
    found = task.run(context)
    slow, fast = (
        found.measures[f"tau_mask {tau}, tau_edit off, looks 0, block 4: {SPEED}"].value for tau in ("1", "0.3")
    )
    assert slow <= 1.0 < fast and found.measures[f"chosen, other half: {QUALITY}"].value > 0
    (tmp_path / "one.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match="two halves need more"):
        made(file=str(tmp_path / "one.jsonl"), parent="tiny-parent", max_new_tokens=4).run(context)
