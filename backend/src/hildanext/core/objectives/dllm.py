# The MDLM loss of dllm: masked positions are those whose noisy token is [MASK], one rate per row, maskable-token mean.
# Entry points: Dllm.
# A preset: the fields of mask_and_edit with other defaults. dllm's weight is 1 / (t + 1e-6), taken as printed.
"""Objective `dllm`."""

from dataclasses import replace

import torch
from pydantic import Field

from hildanext.config.noise import NoiseConfig
from hildanext.core.diffusion import DiffusionObjective
from hildanext.core.noise import Corruption
from hildanext.core.types import Batch, Denoiser

ROW_NOISE = NoiseConfig(unit="sequence", replace=0.0)


class Dllm(DiffusionObjective):
    """sum over {learn, noisy = [MASK]} of nll / (t + 1e-6) / learnable tokens. A [MASK] of the text itself counts as
    masked there. Source: dllm core/trainers/mdlm.py:149-209, recipe 1.3."""

    noise: NoiseConfig = Field(ROW_NOISE, description="one mask rate per row, no replaced tokens")
    keep_weight: float = Field(0.0, ge=0, description="factor of the KEEP term")
    exclude_mask: bool = Field(False, description="give [MASK] probability 0 in every prediction")

    def views(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """The drawn views with the masked set read off the noisy tokens."""
        return tuple(self._reread(view, batch, model.mask_id) for view in super().views(model, batch, block, rng))

    def _reread(self, view: Corruption, batch: Batch, mask_id: int) -> Corruption:
        masked = batch.learn & (view.tokens == mask_id)
        return replace(view, masked=masked, maskable=batch.learn, elbo=1 / (view.rate + 1e-6))
