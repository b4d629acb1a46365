# A fixed count of masks per forward from the left: the order of an autoregressive model.
# Entry points: LeftToRight.
# What the other orders are compared with, and what `hildanext trajectories` calls the parent's order.
"""Policy `left_to_right`."""

from __future__ import annotations

import torch
from pydantic import Field

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked


class LeftToRight(BlockPolicy):
    """The `count` leftmost masked positions. Source: docs/plugins.md, the order of an autoregressive model."""

    count: int = Field(1, ge=1, description="masks filled per forward")

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The next ones from the left."""
        places = -torch.arange(len(canvas.tokens), dtype=torch.float64)
        return fill(stats, canvas, best_first(places, masked(canvas), least(canvas, self.count)))
