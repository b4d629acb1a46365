# Next-token prediction by the unmodified causal model: pre-training, the tiny parent, and the baseline of every report.
# Entry points: Autoregressive.
# As a side term of a diffusion objective, set that objective's field `autoregressive` instead.
"""Objective `autoregressive`."""

import torch
from pydantic import Field

from hildanext.core.loss_report import autoregressive_report
from hildanext.core.objective import BaseObjective
from hildanext.core.types import Batch, Denoiser, LossReport, Pass


class Autoregressive(BaseObjective):
    """sum of -log p(token | earlier tokens of its document) / scored tokens (learn, not a document's first).
    Source: docs/papers.md, next-token loss."""

    exclude_mask: bool = Field(True, description="give [MASK] probability 0 in every prediction")

    @property
    def passes(self) -> tuple[Pass, ...]:
        """One causal forward."""
        return (Pass(causal=True),)

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        """The report of one micro-batch; block and rng are not used."""
        return autoregressive_report(model, batch, self.exclude_mask)
