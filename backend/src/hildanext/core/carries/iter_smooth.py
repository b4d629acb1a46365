# dInfer's iteration smoothing: a growing share of the predicted mean embedding on top of [MASK], without any training.
# Entry points: IterSmooth.
# The sum is no mean: [MASK] keeps its whole weight, as in the published code.
"""Carry `iter_smooth`."""

from __future__ import annotations

from pydantic import Field

from hildanext.core.carry import Carried, Carry, Likely, renormalised


class IterSmooth(Carry):
    """E[MASK] + w sum_v p_v E_v, w rising by `rise` with every forward of the block from `first` to `last`.
    Source: dInfer arXiv:2510.08666, iteration smoothing; the cut to k tokens is ours."""

    first: float = Field(0.15, ge=0.0, le=1.0, description="weight of the prediction after a block's first forward")
    rise: float = Field(0.02, ge=0.0, le=1.0, description="what it grows by per forward")
    last: float = Field(0.3, ge=0.0, le=1.0, description="its largest value")

    def carried(self, found: Likely, step: int) -> Carried:
        """Predictions at the weight of this step."""
        weight = min(self.last, self.first + self.rise * step)
        mask = found.spread.new_ones(found.spread.shape)
        return Carried(found.ids, renormalised(found.probability) * weight, mask)
