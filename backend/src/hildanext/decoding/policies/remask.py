# Threshold decoding that takes back: visible tokens the model has become unsure of return to [MASK].
# Entry points: Remask.
# Only within the active block, never a given token, and always fewer than are filled, so the block still ends.
"""Policy `remask`."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked


class Remask(BlockPolicy):
    """Fill p > tau_mask; every `stride` forwards of the first `window`, the least confident visible tokens return
    to [MASK]: a share target_ratio of them, falling to minimum_ratio as the block fills; the surest are exempt."""

    tau_mask: float = Field(0.7, description="probability a masked position must exceed to be filled")
    target_ratio: float = Field(0.15, ge=0.0, le=1.0, description="share of visible tokens taken back at first")
    minimum_ratio: float = Field(0.05, ge=0.0, le=1.0, description="share taken back as the block becomes full")
    window: int = Field(32, ge=0, description="forwards of a block during which tokens may be taken back, a count")
    stride: int = Field(4, ge=1, description="forwards from one taking back to the next, a count")
    cap_percentile: float = Field(0.95, ge=0.0, le=1.0, description="quantile of confidence that exempts a token")

    def looked_at(self, canvas: Canvas) -> Tensor:
        """Every editable position: visible tokens are judged again."""
        return canvas.editable

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """Fill, and take back fewer than are filled."""
        hidden = masked(canvas)
        taken = self._taken_back(stats, canvas, hidden)
        chosen = hidden & (stats.probability > self.tau_mask)
        wanted = min(int(hidden.sum()), least(canvas, int(taken.sum()) + 1))
        chosen |= best_first(stats.probability, hidden, wanted)
        filled = fill(stats, canvas, chosen)
        tokens = filled.tokens.masked_fill(taken, canvas.mask_id)
        return Update(tokens, filled.unmasked, filled.edited, taken)

    def _taken_back(self, stats: Stats, canvas: Canvas, hidden: Tensor) -> Tensor:
        visible = canvas.editable & ~hidden
        seen, left = int(visible.sum()), int(hidden.sum())
        if not canvas.ready or canvas.step >= self.window or canvas.step % self.stride or not seen or left < 2:
            return torch.zeros_like(hidden)
        sure = torch.where(stats.best == canvas.tokens, stats.probability, 0.0)
        cap = torch.quantile(sure[visible].float(), self.cap_percentile)
        share = self.minimum_ratio + (self.target_ratio - self.minimum_ratio) * left / max(1, canvas.masks)
        count = min(int(share * seen + 0.5), left - 1)
        return best_first(-sure, visible & (sure < cap), count)
