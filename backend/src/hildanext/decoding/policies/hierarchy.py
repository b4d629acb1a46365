# dInfer's hierarchical rule: one mask per contiguous run, so that neighbours are not filled blindly together.
# Entry points: Hierarchy.
# Besides the runs' best, everything above tau_mask is filled, and the best of all.
"""Policy `hierarchy`."""

from __future__ import annotations

import torch
from pydantic import Field

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked


class Hierarchy(BlockPolicy):
    """The best of each run of masks if p > tau_low, everything with p > tau_mask, and the best of all.
    Source: dInfer arXiv:2510.08666, hierarchical decoding."""

    tau_mask: float = Field(0.92, description="probability above which a masked position is filled anyway")
    tau_low: float = Field(0.4, description="probability the best of a run must exceed")

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """One per run, plus the confident ones."""
        hidden = masked(canvas)
        run = (hidden & ~torch.cat((hidden.new_zeros(1), hidden[:-1]))).cumsum(dim=0)
        chosen = hidden & (stats.probability > self.tau_mask)
        chosen |= best_first(stats.probability, hidden, least(canvas, 1))
        for number in range(1, int(run.max()) + 1):
            leader = best_first(stats.probability, hidden & (run == number), 1)
            chosen |= leader & (stats.probability > self.tau_low)
        return fill(stats, canvas, chosen)
