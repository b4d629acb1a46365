# Tokens drawn from softmax(features @ head.T) in chunks of rows, from uniform numbers that the caller owns.
# Entry points: sample_tokens.
# Inversion: one uniform per position, so that a row's draws depend on its own random stream and on nothing else.
"""Sampling from a linear head."""

from __future__ import annotations

import torch
from torch import Tensor

from hildanext.core.linear_cross_entropy import HeadOptions, chunk_rows


def sample_tokens(features: Tensor, weight: Tensor, uniform: Tensor, options: HeadOptions) -> Tensor:
    """features [n, D], weight [V, D], uniform [n] float64 in [0, 1) -> [n] int64: the first token at which the sum of
    probabilities exceeds uniform, options.exclude never. No gradient; sums are float64."""
    rows = chunk_rows(2 * weight.shape[0], options.chunk)
    features, weight = features.detach(), weight.detach().to(features.dtype)
    drawn = torch.empty(len(uniform), dtype=torch.long, device=features.device)
    for start in range(0, len(uniform), rows):
        part = slice(start, start + rows)
        drawn[part] = _drawn(features[part], weight, uniform[part], options.exclude)
    return drawn


def _drawn(features: Tensor, weight: Tensor, uniform: Tensor, exclude: int | None) -> Tensor:
    logits = torch.mm(features, weight.T).double()
    if exclude is not None:
        logits[:, exclude] = -torch.inf
    sums = logits.softmax(dim=1).cumsum(dim=1)
    total = sums[:, -1:]
    bound = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, bound, right=True)[:, 0]
