# dInfer's credit rule; tokens that were predicted before get a bonus on their logits.
# Entry points: Credit.
# Credit is rebuilt from the block's history each step, so the rule stays pure.
"""Policy `credit`."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked
from hildanext.decoding.statistics import Bias


class Credit(BlockPolicy):
    """Threshold decoding on logits + alpha ln(1 + C), C the decayed sum of p^gamma over earlier predictions.
    Source: dInfer arXiv:2510.08666, credit decoding."""

    remembers: ClassVar[bool] = True
    tau_mask: float = Field(0.9, description="probability a masked position must exceed to be filled")
    alpha: float = Field(0.7, ge=0.0, description="weight of the credit, logits; 0: plain threshold decoding")
    decay: float = Field(0.8, ge=0.0, le=1.0, description="share of the credit kept per forward")
    gamma: float = Field(0.2, ge=0.0, description="exponent of the probability that earns credit")

    def bias(self, canvas: Canvas) -> Bias | None:
        """alpha ln(1 + C) at each token that was predicted before at its position."""
        if not canvas.history or not self.alpha:
            return None
        tokens = torch.stack([best for best, _ in canvas.history], dim=1)
        ages = torch.arange(len(canvas.history) - 1, -1, -1, device=tokens.device)
        votes = torch.stack([probability for _, probability in canvas.history], dim=1) ** self.gamma
        weighted = votes * self.decay**ages
        same = tokens.unsqueeze(2) == tokens.unsqueeze(1)
        total = (same * weighted.unsqueeze(1)).sum(dim=2)
        repeated = torch.tril(same, diagonal=-1).any(dim=2)
        return Bias(tokens, torch.where(repeated, 0.0, self.alpha * torch.log1p(total)))

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """Every mask above the threshold, at least the best."""
        hidden = masked(canvas)
        chosen = hidden & (stats.probability > self.tau_mask)
        return fill(stats, canvas, chosen | best_first(stats.probability, hidden, least(canvas, 1)))
