# Objective `ebpo`: espo on the block bound with a mask count per block, and a term for rewriting wrong tokens.
# Entry points: Ebpo.
# All blocks are noised at once and scored in one forward per view; a count for each block makes the bound vary less.
"""Policy objective ebpo."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, PrivateAttr

from hildanext.config.noise import NoiseConfig
from hildanext.core.noise import Corruption
from hildanext.core.policy_objectives.espo import Espo
from hildanext.core.policy_views import Played, with_edits
from hildanext.core.types import About, Denoiser


class Ebpo(Espo):
    """The clipped ratio of block-causal bounds. edits > 0: a share of the visible tokens is replaced, and predicting
    the right ones again counts too. Source: LLaDA2.1 arXiv:2602.08676 eq. 4-5; per-token ratio, clip, KL and the
    weight of edits, which it does not state, are ours."""

    rates: Literal["sequence", "block"] = Field("block", description="one mask count per answer, or one per block")
    edits: float = Field(0.0, ge=0, lt=1, description="share of the visible tokens replaced (T2T), a probability")
    edit_weight: float = Field(1.0, ge=0, description="weight of the log-probability of a replaced token")

    _noise: NoiseConfig = PrivateAttr(NoiseConfig())

    def prepare(self, about: About) -> Self:
        """With the tokens that may stand in for others."""
        made = self.model_copy()
        made._noise = NoiseConfig(replace=self.edits, vocabulary=about.vocabulary, forbidden=about.special)
        return made

    def views(self, model: Denoiser, played: Played, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """Those of the bound, with replaced tokens where edits are asked for."""
        found = super().views(model, played, block, rng)
        if not self.edits:
            return found
        noise, weight = self._noise, self.edit_weight
        return tuple(with_edits(model, played.batch, view, noise, weight, rng) for view in found)
