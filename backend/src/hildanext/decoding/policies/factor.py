# Fast-dLLM's factor rule: the more masks are filled at once, the surer each must be.
# Entry points: Factor.
# It is a prefix rule; dInfer's code accepts one too many when the first failure is at the last rank.
"""Policy `factor`."""

from __future__ import annotations

import torch
from pydantic import Field

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked


class Factor(BlockPolicy):
    """The largest n with (n + 1)(1 - c_(n)) < factor, c_(n) the n-th highest probability; at least one.
    Source: Fast-dLLM arXiv:2505.22618, factor-based parallel decoding."""

    factor: float = Field(1.0, gt=0.0, description="bound on (n + 1)(1 - c_(n)); larger fills more at once")

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The longest prefix that meets the rule."""
        hidden = masked(canvas)
        ordered = stats.probability[hidden].double().sort(descending=True).values
        rank = torch.arange(1, len(ordered) + 1, device=ordered.device)
        holds = ((rank + 1) * (1 - ordered) < self.factor).long().cumprod(dim=0)
        count = max(least(canvas, 1), int(holds.sum()))
        return fill(stats, canvas, best_first(stats.probability, hidden, count))
