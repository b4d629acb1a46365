# What every reward keeps: a finite number for each answer, the same again, or one line on what its rows lack.
# Entry points: pytest. A new reward is found by its file; ROWS: what a row of it looks like, with a right answer.
# What a reward means is tested in test/measure/test_rewards.py.
"""Contract of the rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from hildanext.core.reward import Attempt, Reward
from hildanext.errors import HildaError
from hildanext.registry import build, names

NAMES = names("rewards")
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "arithmetic": ({"answer": "12"}, "it is 12"),
    "countdown": ({"input": [1, 2], "output": 3}, "1 + 2"),
    "sudoku": ({"Puzzle": "0142243142131324", "Solution": "3142243142131324"}, "3142243142131324"),
    "gsm8k": ({"answer": "so #### 4"}, "#### 4"),
    "math_answer": ({"answer": "4"}, "$4$"),
    "unit_tests": ({"test_list": ["assert two() == 2"]}, "def two():\n    return 2"),
}
PATIENT = {"math_answer": {"seconds": 300.0}}


def attempts(name: str) -> list[Attempt]:
    row, right = ROWS.get(name, ({}, "some words"))
    return [Attempt(row, reply, 0, 5 + place, 4 + place) for place, reply in enumerate((right, ""))]


def broken_promises(reward: Reward, asked: Sequence[Attempt]) -> list[str]:
    """What is wrong with the scores of a reward."""
    first, again = reward.scores(asked), reward.scores(asked)
    found = [] if first == again else ["the same answers have other scores"]
    found += [] if len(first) == len(asked) else [f"{len(first)} scores for {len(asked)} answers"]
    return found + ([] if all(map(math.isfinite, first)) else ["a score is not finite"])


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_is_a_finite_number_for_each_answer(name: str) -> None:
    reward, asked = build("rewards", {"type": name, **PATIENT.get(name, {})}), attempts(name)
    try:
        reward.ready([one.row for one in asked])
    except HildaError as error:
        assert name in str(error) and len(str(error).splitlines()) == 1
        pytest.skip(str(error))
    assert broken_promises(reward, asked) == []


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_without_what_is_needed_is_one_clear_line(name: str) -> None:
    with pytest.raises(HildaError, match=f"reward {name}: [^\n]+$"):
        build("rewards", {"type": name}).ready([{"text": "nothing of use"}])


def test_a_planted_missing_score_is_seen() -> None:
    class Short(Reward):
        """Forgets one."""

        def scores(self, attempts: Sequence[Attempt]) -> list[float]:
            return [float("nan") for _ in attempts[1:]]

    assert len(broken_promises(Short(), attempts("format"))) == 3
