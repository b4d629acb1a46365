# Objective `wd1`: a weighted likelihood without a ratio: good answers up, bad ones down, softmax weights in the group.
# Entry points: Wd1.
# No old policy is read. Pushing likelihood down has no floor: short runs and small rates.
"""Policy objective wd1."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from hildanext.core.policy_objective import SequenceObjective, advantages, kl
from hildanext.core.policy_views import Played


class Wd1(SequenceObjective):
    """-(softmax(A) - softmax(-A)) B(model) / tokens, summed over a group. Source: wd1 arXiv:2507.08838; the block bound
    in place of the fully masked estimate, and the division by tokens, are ours."""

    reads_old: ClassVar[bool] = False

    kl_weight: float = Field(0.0, ge=0, description="factor of the KL to the reference; 0: none, and no reference")

    def advantages(self, rewards: Tensor) -> Tensor:
        """G (softmax(A) - softmax(-A)), so that a mean over answers is a sum over each group; 0 where it is flat."""
        own = advantages(rewards, self.advantage)
        return rewards.shape[1] * (own.softmax(dim=1) - (-own).softmax(dim=1))

    def row_losses(
        self, now: Tensor, old: Tensor, reference: Tensor | None, played: Played
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of an answer; part: kl (per token)."""
        tokens = played.batch.learn.sum(dim=1).clamp(min=1).to(now.dtype)
        loss = -played.advantage.to(now.dtype) * now / tokens
        if reference is None:
            return loss, {}
        gap = kl(now - reference, self.kl_form) / tokens
        return loss + self.kl_weight * gap, {"kl": gap}
