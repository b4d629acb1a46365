# Does editing repair? Errors are planted in clean text and the model is asked, at every position, what it would write.
# Entry points: repair_probe, RepairCounts, TAU_EDITS.
# One forward on [x_t ; x_0] with no mask in x_t: random tokens at a share of the learnable positions, the rest right.
"""T2T evaluation: repair rate and false-edit rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hildanext.config.noise import NoiseConfig
from hildanext.core.likelihood import token_nll
from hildanext.core.noise import plant
from hildanext.core.types import Batch, Denoiser

TAU_EDITS = (0.0, 0.5, 0.9)
PLANTED = NoiseConfig()


@dataclass(frozen=True)
class RepairCounts:
    """Counts at one tau_edit. planted errors and the repaired ones (replaced by the original); correct tokens and the
    ones the model would change."""

    planted: int
    repaired: int
    correct: int
    changed: int

    def __add__(self, other: RepairCounts) -> RepairCounts:
        """Counts of both batches."""
        return RepairCounts(
            self.planted + other.planted, self.repaired + other.repaired,
            self.correct + other.correct, self.changed + other.changed,
        )  # fmt: skip

    @property
    def repair_rate(self) -> float:
        """Share of planted errors corrected; NaN without any."""
        return self.repaired / self.planted if self.planted else math.nan

    @property
    def false_edit_rate(self) -> float:
        """Share of correct tokens that would be changed; NaN without any."""
        return self.changed / self.correct if self.correct else math.nan


def repair_probe(
    model: Denoiser, batch: Batch, block: int, rng: torch.Generator, noise: NoiseConfig = PLANTED
) -> dict[float, RepairCounts]:
    """{tau_edit: counts} of one edit step at every learnable position: an edit is best != token with probability
    > tau_edit (strict). noise.replace is the share planted, never the original; vocabulary and forbidden hold.
    Source: LLaDA2.1 arXiv:2602.08676 eq. 2, restricted to visible tokens."""
    tokens, planted, maskable = plant(noise, model, batch, rng)
    with torch.no_grad():
        scores = token_nll(model, tokens, batch, block, maskable)
    wrong, targets = planted[maskable], batch.tokens[maskable]
    return {tau: _counts(scores.best, scores.probability > tau, targets, tokens[maskable], wrong) for tau in TAU_EDITS}


def _counts(best: Tensor, sure: Tensor, targets: Tensor, tokens: Tensor, wrong: Tensor) -> RepairCounts:
    edited = sure & (best != tokens)
    repaired = int((edited & wrong & (best == targets)).sum())
    return RepairCounts(int(wrong.sum()), repaired, int((~wrong).sum()), int((edited & ~wrong).sum()))
