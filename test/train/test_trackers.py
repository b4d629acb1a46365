# Trackers: metrics.jsonl cut at a resumed step, numbers handed on under flat names, missing libraries named.
# Entry points: pytest.
# wandb and trackio share one small surface, which a stand-in module records.
"""Tests of train/trackers.py and report/losses.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from train.material import records

from hildanext.config.train import LadderConfig
from hildanext.core.block_ladder import Ladder
from hildanext.errors import ConfigError
from hildanext.report.losses import plot_losses
from hildanext.train.trackers import JsonLines, flat, open_trackers

RECORD = {"step": 3, "loss": 1.5, "phase": "decay", "eval": {"nll": {"4": 2.0}}}


def test_a_resumed_file_loses_later_and_broken_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    tracker = JsonLines(path, 2)
    tracker.write({"step": 3, "loss": 1.0})
    tracker.close()
    assert records(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_hosted_tracker_gets_flat_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    fake = SimpleNamespace(
        init=lambda **values: calls.append(values), finish=lambda: calls.append("finish"),
        log=lambda values, step: calls.append((values, step)),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, name, fake)
    tracker = open_trackers([name], tmp_path, 0)[1]
    tracker.write(RECORD)
    tracker.close()
    numbers = {"step": 3.0, "loss": 1.5, "eval/nll/4": 2.0}
    assert calls == [{"project": "hildanext", "name": tmp_path.name}, (numbers, 3), "finish"]
    assert flat(RECORD) == numbers


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb is not installed"):
        open_trackers(["wandb"], tmp_path, 0)


def test_tensorboard_gets_an_event_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = open_trackers(["tensorboard"], tmp_path, 0)[1]
    tracker.write(RECORD)
    tracker.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_without_matplotlib_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plot = plot_losses(tmp_path, Ladder.of(LadderConfig(fixed=4), 16, 2))
    assert plot.path is None
    assert "hildanext[plots]" in plot.reason
