# The MDLM loss of dllm: masked positions are those whose noisy token is [MASK], one rate per row, maskable-token mean.
# Entry points: Dllm.
# A preset of mask_and_edit, with dllm's reading of the drawn views. dllm's weight is 1 / (t + 1e-6), taken as printed.
"""Objective `dllm`."""

from dataclasses import replace

import torch

from hildanext.config.noise import ROW_NOISE
from hildanext.core.noise import Corruption
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch, Denoiser


class Dllm(MaskAndEdit, noise=ROW_NOISE, keep_weight=0.0, exclude_mask=False):
    """sum over {learn, noisy = [MASK]} of nll / (t + 1e-6) / learnable tokens. A [MASK] of the text itself counts as
    masked there. Source: MDLM arXiv:2406.07524, as in dllm's core/trainers/mdlm.py."""

    def views(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """The drawn views with the masked set read off the noisy tokens."""
        return tuple(self._reread(view, batch, model.mask_id) for view in super().views(model, batch, block, rng))

    def _reread(self, view: Corruption, batch: Batch, mask_id: int) -> Corruption:
        masked = batch.learn & (view.tokens == mask_id)
        return replace(view, m2t=masked, maskable=batch.learn, elbo=1 / (view.rate + 1e-6))
