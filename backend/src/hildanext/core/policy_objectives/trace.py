# Objective `trace`: every token of an answer in the state it was decoded in, round by round.
# Entry points: Trace.
# One forward serves the j-th round of every block, so an answer costs as many as its slowest block had.
"""Policy objective trace."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.noise import Corruption
from hildanext.core.policy_objective import StepObjective
from hildanext.core.policy_views import Played, round_views
from hildanext.core.types import Denoiser


class Trace(StepObjective):
    """-min(r A, clip(r) A), r a token's ratio in its recorded state, mean over an answer's tokens; KL to the policy
    that answered. Source: TraceRL arXiv:2509.06949, without its value model."""

    kl_weight: float = Field(0.01, ge=0, description="factor of the KL to the policy that answered; 0: none")
    advantage: Literal["leave_one_out", "group_mean", "z"] = Field(
        "z", description="what a reward is compared with: the others' mean, the group's, or that in deviations"
    )

    @property
    def compares(self) -> bool:
        """No reference: the KL is to the old policy."""
        return False

    def views(self, model: Denoiser, played: Played, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """All rounds."""
        return round_views(model, played)

    def scale(self, played: Played) -> Tensor:
        """The answer's tokens."""
        return played.batch.learn.sum(dim=1).clamp(min=1)
