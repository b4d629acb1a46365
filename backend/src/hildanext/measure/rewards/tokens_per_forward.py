# Reward `tokens_per_forward`: how few forwards an answer took, compared within its group.
# Entry points: TokensPerForward.
# A speed alone is had by saying nothing well: name it beside a reward of correctness, which comes first.
"""Reward plugin tokens_per_forward."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from pydantic import Field

from hildanext.core.reward import Attempt, Reward


class TokensPerForward(Reward):
    """The z-score of tokens / forwards in the group; 0 in a group that varies by less than `narrow`. Source:
    LightningRL arXiv:2603.13319."""

    narrow: float = Field(0.01, ge=0, description="range of tokens per forward below which a group counts as alike")
    only_stopped: bool = Field(True, description="an answer that was cut off gets no more than 0")

    def scores(self, attempts: Sequence[Attempt]) -> list[float]:
        """Group by group."""
        speeds = [one.tokens / max(1, one.forwards) for one in attempts]
        made = []
        for own, speed in zip(attempts, speeds, strict=True):
            group = [other for one, other in zip(attempts, speeds, strict=True) if one.group == own.group]
            flat = max(group) - min(group) < max(self.narrow, 1e-12)
            score = 0.0 if flat else (speed - fmean(group)) / pstdev(group)
            made.append(min(score, 0.0) if self.only_stopped and not own.stopped else score)
        return made

    def score(self, attempt: Attempt) -> float:
        """Alone it is its whole group."""
        return self.scores([attempt])[0]
