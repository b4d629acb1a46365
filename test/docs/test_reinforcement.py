# docs/rl.md's first command runs and reports what the page says; the generated puzzles are what they claim.
# Entry points: pytest.
# The run is docs/rl.md's own, with two steps, few prompts and little data; a metric the page does not name fails.
"""Tests of docs/rl.md and docs/puzzles.py."""

from __future__ import annotations

import json
import random
import re
import shlex
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from scripts import script

from hildanext.cli import main
from hildanext.core.reward import Attempt
from hildanext.registry import build

LOOP = {
    "step", "loss", "lr", "grad_norm", "seconds", "processor", "time", "tokens_per_second", "memory", "phase", "block",
    "rollout",
}  # fmt: skip
DATA = '[{"type": "storyworld", "seed": 11, "stories": 0, "chat": 0, "arithmetic": 60, "coding": 0}]'
SHORTER = [
    "train.steps=2", "train.batch=8", "rl.groups=2", "rl.samples=4", "rl.held_out=2", "rl.limit=20", "rl.answer=16",
    "train.eval_rows=1", "data.eval_share=0.2", f"data.sources={DATA}", "data.workers=1",
]  # fmt: skip


def metrics_named(page: str) -> set[str]:
    """What the page says of metrics.jsonl."""
    told = page.partition("metrics.jsonl has, per step")[2].partition("\n\n")[0]
    told = told.partition("`moved_*`")[0]
    return {name for span in re.findall(r"`([^`]+)`", told) for name in span.split()}


def test_the_first_command_of_the_page_runs_and_its_metrics_are_those_the_page_names(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (project / "docs" / "rl.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("    hildanext rl --config"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "configs").symlink_to(project / "runs" / "configs")
    monkeypatch.chdir(tmp_path)
    shorter = [word for value in SHORTER for word in ("--set", value)]
    assert main([*shlex.split(line)[1:], *shorter, "--quiet"]) == 0
    run = tmp_path / "runs" / "mine"
    assert len(json.loads((run / "report.json").read_text())["held_out"]["rewards"]) == 2
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    seen = {name for one in lines if "loss" in one for name in one} - LOOP
    named = metrics_named(page)
    assert {name for name in seen if not name.startswith("reward_")} <= named
    assert named - seen <= {"reward_<name>", "kl", "moved", "clipped"}


def test_a_metric_the_page_leaves_out_is_seen(project: Path) -> None:
    page = (project / "docs" / "rl.md").read_text(encoding="utf-8")
    assert "first_end" in metrics_named(page) and "first_end" not in metrics_named(page.replace("first_end", ""))


@pytest.fixture(scope="module")
def puzzles(project: Path) -> Any:
    return script(project / "docs" / "puzzles.py")


@pytest.mark.parametrize("name", ["countdown", "sudoku"])
def test_puzzles_are_solved_by_their_worked_answers_and_none_of_test_is_in_training(puzzles: Any, name: str) -> None:
    task, reward = getattr(puzzles, name), build("rewards", {"type": name})
    rng = random.Random(3)
    for _ in range(20):
        row, answer = task(rng)
        assert reward.score(Attempt(row, answer)) == 1.0
    parts = {part: list(islice(puzzles.made(task, part), 60)) for part in ("sft", "train", "test")}
    asked = {part: {str(row.get("prompt") or row["messages"][0]["content"]) for row in parts[part]} for part in parts}
    assert not asked["test"] & (asked["sft"] | asked["train"])
    first = parts["sft"][0]["messages"]
    assert first[1]["content"] != parts["sft"][1]["messages"][1]["content"]
    assert len(puzzles.GRIDS) == 288
