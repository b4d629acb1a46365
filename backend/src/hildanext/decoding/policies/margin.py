# A quota of masks by the margin between the two likeliest tokens.
# Entry points: Margin.
# The margin needs the runner-up's probability, so its statistics cost a top-2 per position.
"""Policy `margin`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked, quota


class Margin(BlockPolicy):
    """The n_j masked positions of largest p(1) - p(2). Source: arXiv:2502.06768, top-k margin."""

    needs: ClassVar[frozenset[str]] = frozenset({"second"})
    steps: int = Field(0, ge=0, description="forwards a block's masks are spread over, a count; 0: one per mask")

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The quota of this step, largest margin first."""
        if stats.second is None:
            raise ValueError("policy margin: the statistics carry no runner-up")
        count = quota(canvas.masks, self.steps or max(1, canvas.masks), canvas.step)
        score = stats.probability - stats.second
        return fill(stats, canvas, best_first(score, masked(canvas), least(canvas, max(1, count))))
