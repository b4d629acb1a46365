# Objective `espo`: the ratio of whole answers through their likelihood bound, clipped, with a KL to the reference.
# Entry points: Espo.
# The ratio is per token (the bound's difference over the answer's tokens), so a useful clip is about 5e-4, not 0.2.
"""Policy objective espo."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from hildanext.core.policy_objective import SequenceObjective, clipped, kl
from hildanext.core.policy_views import Played
from hildanext.core.preference import ratio_loss


class Espo(SequenceObjective):
    """-min(rho A, clip(rho) A) + beta KL, rho = exp((B(model) - B(old)) / tokens), one mask count per answer. Source:
    ESPO arXiv:2512.03759; tokens are those that count, not the canvas."""

    rates: Literal["sequence", "block"] = Field("sequence", description="one mask count per answer, or one per block")
    clip: float = Field(5e-4, ge=0, description="epsilon: the ratio per token counts within [1 - epsilon, 1 + epsilon]")

    def row_losses(
        self, now: Tensor, old: Tensor, reference: Tensor | None, played: Played
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of an answer; parts: clipped, moved (|log rho|), kl (per token)."""
        tokens = played.batch.learn.sum(dim=1).clamp(min=1).to(now.dtype)
        advantage = played.advantage.to(now.dtype)
        loss, ratio = ratio_loss(now / tokens, old / tokens, advantage, (self.clip, self.clip))
        parts = {"clipped": clipped(ratio, advantage, self.clip), "moved": ((now - old) / tokens).abs()}
        if reference is not None:
            gap = kl(now - reference, self.kl_form) / tokens
            loss, parts = loss + self.kl_weight * gap, parts | {"kl": gap}
        return loss, parts
