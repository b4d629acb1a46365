# The baseline: a fixed count of masks per forward at positions drawn at random.
# Entry points: RandomOrder.
# Draws are keyed by seed, absolute position and step, not by call order.
"""Policy `random`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked, quota


class RandomOrder(BlockPolicy):
    """n_j masked positions drawn uniformly without replacement at step j.
    Source: LLaDA arXiv:2502.09992, random remasking."""

    random: ClassVar[bool] = True
    steps: int = Field(0, ge=0, description="forwards a block's masks are spread over, a count; 0: one per mask")

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The quota of this step, best first."""
        count = quota(canvas.masks, self.steps or max(1, canvas.masks), canvas.step)
        return fill(stats, canvas, best_first(_drawn(canvas), masked(canvas), least(canvas, max(1, count))))


def _drawn(canvas: Canvas) -> Tensor:
    if canvas.uniform is None:
        raise ValueError("policy random: the canvas carries no uniform numbers")
    return canvas.uniform
