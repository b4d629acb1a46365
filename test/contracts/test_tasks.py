# What every task keeps: finite measures within their intervals, the same ones again, or one line on what is missing.
# Entry points: pytest. A new task is found by its file; SMALLER: fields of tasks that count otherwise than by `limit`.
# The model is random and its texts are scripted, so scores are poor; what they mean is tested in test/measure.
"""Contract of the tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hildanext.decoding.request import Request
from hildanext.errors import HildaError
from hildanext.measure.task import EvalContext, Outcome, Task
from hildanext.registry import build, names
from hildanext.report.intervals import Measure

NAMES = names("tasks")
STORY: dict[str, Any] = {"type": "storyworld", "stories": 2, "answers": 0, "max_new_tokens": 8}
SMALLER: dict[str, dict[str, Any]] = {
    "storyworld": {"stories": 2, "answers": 1},
    "steps": {"task": STORY, "tau_mask": (0.5, 0.9), "tau_edit": (None,)},
    "nll": {"blocks": (1, 4), "samples": 2},
    "forwards": {"steps": (1, 2), "corpus": 4, "max_new_tokens": 8},
}
Script = Callable[[Callable[[Request], str]], EvalContext]


def small(name: str) -> Task:
    """A task of two items."""
    made: Task = build("tasks", {"type": name, "limit": 2, **SMALLER.get(name, {})})
    return made


def broken_promises(outcome: Outcome) -> list[str]:
    """What is wrong with an outcome."""
    found = [] if outcome.measures else ["nothing is measured"]
    for name, one in outcome.measures.items():
        if not (math.isfinite(one.value) and one.low <= one.value + 1e-9 and one.value <= one.high + 1e-9):
            found.append(f"{name} is {one.value} in [{one.low}, {one.high}]")
        if one.items < 1:
            found.append(f"{name} counts no items")
    json.dumps([dict(outcome.counts), list(outcome.samples), outcome.series])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_task_measures_the_same_twice_or_says_on_one_line_what_is_missing(
    name: str, scripted: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = small(name)
    assert task.version >= 1
    try:
        first, again = (task.run(scripted(lambda request: "no idea")) for _ in range(2))
    except HildaError as error:
        assert (name in str(error) or "path" in str(error)) and len(str(error).splitlines()) == 1
    else:
        assert broken_promises(first) == []
        timed = {key for key in first.measures if "second" in key}
        assert {key: one for key, one in first.measures.items() if key not in timed} == {
            key: one for key, one in again.measures.items() if key not in timed
        }
    assert not list(tmp_path.iterdir())


def test_planted_outcomes_are_seen() -> None:
    assert broken_promises(Outcome({})) == ["nothing is measured"]
    wild = Measure(2.0, 0.0, 1.0, 0, "share")
    assert broken_promises(Outcome({"a": wild})) == ["a is 2.0 in [0.0, 1.0]", "a counts no items"]
