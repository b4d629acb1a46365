# Objective `agrpo`: the policy gradient over the forwards an answer was decoded in, from a few of them at a time.
# Entry points: Agrpo.
# Unbiased where the order does not depend on the model (decode.policy random); under thresholds the choice of positions
# is left out of the gradient, which is a bias.
"""Policy objective agrpo."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.noise import Corruption, units
from hildanext.core.policy_objective import StepObjective
from hildanext.core.policy_views import Played, step_views
from hildanext.core.types import Denoiser


class Agrpo(StepObjective):
    """Sum over a block's rounds of -min(r A, clip(r) A), r a token's ratio in its own state, from sampled rounds that
    weigh 1/q. Source: AGRPO arXiv:2510.04019; the sum, not the mean over rounds, is what is unbiased where their number
    differs."""

    draws: int = Field(2, ge=1, description="rounds drawn per block and update, a count")
    chosen_by: Literal["uniform", "surprisal"] = Field(
        "surprisal", description="q: rounds alike, or in proportion to -log p of the tokens they filled"
    )
    advantage: Literal["leave_one_out", "group_mean", "z"] = Field(
        "group_mean", description="what a reward is compared with: the others' mean, the group's, or that in deviations"
    )

    def views(self, model: Denoiser, played: Played, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """A sampled round of every block, `draws` times."""
        unit = units("block", played.batch, block, model.block_grid)
        return step_views(model, played, unit, rng, self.draws, self.chosen_by == "surprisal")

    def penalty(self, now: Tensor, old: Tensor, reference: Tensor) -> Tensor:
        """r times the KL estimate, as tokens are the old policy's."""
        return (now - old).exp() * super().penalty(now, old, reference)
