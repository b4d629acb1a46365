# Reward `storyworld`: whether an answer does what its row of the story world asks, or is a story without faults.
# Entry points: StoryWorld.
# Rows come from rl.rows world:<register>, or from a file that keeps their `register` and `check`.
"""Reward plugin storyworld."""

from __future__ import annotations

from pydantic import Field

from hildanext.core.reward import Attempt, Reward
from hildanext.world.check import contradictions
from hildanext.world.corpus import check_answer


class StoryWorld(Reward):
    """1 where the world's own judge says so, else 0; of a story, with `graded`, 1 / (1 + faults). Source:
    docs/rl.md."""

    graded: bool = Field(True, description="a story with faults is worth 1 / (1 + their number), not 0")

    def score(self, attempt: Attempt) -> float:
        """Of one answer; a row that asks nothing is a story's."""
        if attempt.row.get("check"):
            return float(check_answer(attempt.row, attempt.reply))
        faults = contradictions(attempt.reply)
        return 1 / (1 + faults) if self.graded else float(faults == 0)
