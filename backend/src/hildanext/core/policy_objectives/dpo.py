# Objective `dpo`: chosen answers over rejected ones, against a reference, through the block bound of both.
# Entry points: Dpo.
# Rows come in pairs, the chosen one first. Model and reference score the same masks.
"""Policy objective dpo."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from hildanext.core.policy_objective import SequenceObjective
from hildanext.core.policy_views import Played
from hildanext.core.preference import dpo_loss


class Dpo(SequenceObjective):
    """-log sigmoid(beta [dB(chosen) - dB(rejected)]), dB = B(model) - B(reference). Source: LLaDA2.0 arXiv:2512.15745
    eq. 7-8, with the sign of its text; variance by shared masks after VRPO arXiv:2505.19223."""

    pairs: ClassVar[bool] = True
    reads_old: ClassVar[bool] = False

    beta: float = Field(0.1, gt=0, description="how far the model may go from the reference; smaller: further")
    likelihood: float = Field(
        0.0, ge=0, description="factor of -B(chosen) / tokens beside it, which keeps its likelihood up"
    )

    @property
    def compares(self) -> bool:
        """Always."""
        return True

    def row_losses(
        self, now: Tensor, old: Tensor, reference: Tensor | None, played: Played
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a pair, for both of its rows; parts: margin (beta times the difference), preferred (its sign)."""
        if reference is None:
            raise ValueError("dpo: no reference was scored")
        won, lost = (now[0::2], reference[0::2]), (now[1::2], reference[1::2])
        loss, margin = dpo_loss(won, lost, self.beta), self.beta * ((won[0] - won[1]) - (lost[0] - lost[1]))
        if self.likelihood:
            loss = loss - self.likelihood * won[0] / played.batch.learn[0::2].sum(dim=1).clamp(min=1).to(now.dtype)
        parts = {"margin": margin, "preferred": (margin > 0).double()}
        both = {name: value.repeat_interleave(2) for name, value in parts.items()}
        return loss.repeat_interleave(2), both
