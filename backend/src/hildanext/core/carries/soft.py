# DMax' soft tokens: one that was filled in is shown as sure as it is, between its embedding and that of [MASK].
# Entry points: Soft.
# For models trained on their own errors (objective own_errors); others collapse, by the paper and by our measurement.
# A forward with such inputs is never kept: what is committed has hard tokens.
"""Carry `soft`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from hildanext.core.carry import Carried, Carry, Likely


class Soft(Carry):
    """p E[token] + (1 - p) E[MASK] at filled positions, rescaled to p |E[token]| + (1 - p) |E[MASK]|.
    Source: DMax arXiv:2604.08302, soft parallel decoding."""

    filled: ClassVar[bool] = True
    norms: ClassVar[bool] = True
    masked_share: float = Field(
        0.0, ge=0.0, le=1.0, description="factor of the predictions at masked positions; 0: they stay [MASK], as there"
    )

    def carried(self, found: Likely, step: int) -> Carried:
        """The k likeliest with their probabilities times masked_share, the rest [MASK]."""
        weights = found.probability * self.masked_share
        return Carried(found.ids, weights, 1.0 - weights.sum(dim=1))

    def held(self, tokens: Tensor, probability: Tensor) -> Carried:
        """The token at its probability, the rest [MASK]."""
        return Carried(tokens[:, None], probability[:, None], 1.0 - probability)
