# Stochastic low-confidence: a quota of masks drawn without replacement in proportion to exp(confidence / temperature).
# Entry points: RandomTopK.
# The draw is a Gumbel top-k, so it needs one uniform number per position; temperature 0 is static_quota.
"""Policy `random_topk`."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked, quota


class RandomTopK(BlockPolicy):
    """n_j masked positions from softmax(p / position_temperature) without replacement.
    Source: Dream arXiv:2508.15487, its released sampler's alg_temp."""

    random: ClassVar[bool] = True
    steps: int = Field(0, ge=0, description="forwards a block's masks are spread over, a count; 0: one per mask")
    position_temperature: float = Field(0.1, ge=0.0, description="0: no randomness; large: uniform")

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The quota of this step, drawn."""
        if canvas.uniform is None:
            raise ValueError("policy random_topk: the canvas carries no uniform numbers")
        gumbel = -torch.log(-torch.log(canvas.uniform.clamp(1e-300, 1 - 1e-16)))
        score = stats.probability.double() + self.position_temperature * gumbel
        count = quota(canvas.masks, self.steps or max(1, canvas.masks), canvas.step)
        return fill(stats, canvas, best_first(score, masked(canvas), least(canvas, max(1, count))))
