# Reward `storyworld`: whether an answer does what its row of the story world asks, or is a story without faults.
# Entry points: StoryWorld.
# Rows come from rl.rows world:<register>, or from a file that keeps their `register` and `check`.
"""Reward plugin storyworld."""

from __future__ import annotations

from pydantic import Field

from hildanext.core.reward import Attempt, Reward
from hildanext.world.check import contradictions
from hildanext.world.coding import passed
from hildanext.world.corpus import check_answer


class StoryWorld(Reward):
    """1 where the world's own judge says so, else 0; of a story, with `graded`, 1 / (1 + faults); of code, `partial`
    times the share of its tests that are passed. Source: docs/rl.md."""

    graded: bool = Field(True, description="a story with faults is worth 1 / (1 + their number), not 0")
    partial: float = Field(0.0, ge=0, lt=1, description="most that code is worth which passes some of its tests")

    def score(self, attempt: Attempt) -> float:
        """Of one answer; a row that asks nothing is a story's."""
        if attempt.row.get("check"):
            right = check_answer(attempt.row, attempt.reply)
            code = self.partial and attempt.row["check"].get("type") == "code"
            return self.partial * passed(attempt.row["check"], attempt.reply) if code and not right else float(right)
        faults = contradictions(attempt.reply)
        return 1 / (1 + faults) if self.graded else float(faults == 0)
