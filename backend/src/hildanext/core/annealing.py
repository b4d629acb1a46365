# The attention mask of a conversion opened step by step: from the parent's causal one to the whole block.
# Entry points: annealed (a batch with what is open drawn), opened_only (a mask with the rest closed).
# Both halves of [noisy | clean] open together; clean text of earlier blocks is seen from the first step on. A random
# mask has no slices and no tiles, so only dense attention can follow it. Letters: L positions, Q queries, K keys.
"""Annealed attention."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hildanext.core.row_streams import base_seed
from hildanext.core.types import Batch

SALT = 0x616E6E65616C


def annealed(batch: Batch, share: float, rng: torch.Generator) -> Batch:
    """The batch in which a position sees each later one of its block with probability `share`, one draw for all rows
    and layers; at 1 the batch itself. rng is read, not advanced. Source: DiffuLLaMA arXiv:2410.17891, attention mask
    annealing; there is one full row there, blocks are ours."""
    if share >= 1:
        return batch
    own = torch.Generator().manual_seed(base_seed(torch.Generator().set_state(rng.get_state())) ^ SALT)
    length = batch.tokens.shape[1]
    drawn = torch.rand(length, length, generator=own, dtype=torch.float64) < share
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return replace(batch, opened=(causal | drawn).to(batch.tokens.device))


def opened_only(mask: Tensor, opened: Tensor | None) -> Tensor:
    """A bool mask [..., Q, K] over one half or two of L positions, in which a position sees of its own half what is
    open, [L, L] bool; None: the mask itself. Source: DiffuLLaMA arXiv:2410.17891, causal OR Bernoulli."""
    if opened is None:
        return mask
    halves = mask.shape[-1] // len(opened)
    within = torch.eye(halves, dtype=torch.bool, device=mask.device).repeat_interleave(len(opened), 0)
    return mask & (opened.repeat(halves, halves) | ~within.repeat_interleave(len(opened), 1))
