# Times of training drawn by how much is still wrong at them: equal shares of the draws carry equal shares of the loss.
# Entry points: AdaptiveTimes, stratified.
# The averages are buffers, so they are saved and resumed with the weights.
"""Loss-adaptive times."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdaptiveTimes(nn.Module):
    """A running mean of the loss in each of `bins` equal bins of [0, 1], and draws whose density is proportional to it,
    so that the loss accumulates linearly along the draws in their order. floor: share of the draws that stay uniform.
    Source: arXiv:2605.07933 (adaptive timestep sampling); bins, decay and floor are ours."""

    losses: Tensor

    def __init__(self, bins: int = 32, decay: float = 0.98, floor: float = 0.05) -> None:
        super().__init__()
        self.decay, self.floor = decay, floor
        self.register_buffer("losses", torch.ones(bins))

    def density(self) -> Tensor:
        """Share of the draws in each bin, [bins], sums to 1."""
        count = len(self.losses)
        return (1 - self.floor) * self.losses / self.losses.sum() + self.floor / count

    def draw(self, uniform: Tensor) -> Tensor:
        """Times [n] of numbers uniform in [0, 1): the inverse of the cumulative density, linear within a bin."""
        shares = self.density()
        ends = shares.cumsum(0)
        index = torch.searchsorted(ends, uniform.contiguous(), right=True).clamp(max=len(shares) - 1)
        inside = (uniform - (ends - shares)[index]) / shares[index]
        return ((index + inside) / len(shares)).clamp(0, 1)

    @torch.no_grad()
    def update(self, times: Tensor, losses: Tensor) -> None:
        """Take losses [n] seen at times [n] into the means; a bin without a time keeps its own."""
        count = len(self.losses)
        index = (times * count).long().clamp(0, count - 1)
        sums = torch.zeros_like(self.losses).index_add_(0, index, losses.to(self.losses.dtype))
        seen = torch.zeros_like(self.losses).index_add_(0, index, torch.ones_like(losses, dtype=self.losses.dtype))
        means = sums / seen.clamp(min=1)
        self.losses.copy_(torch.where(seen > 0, self.decay * self.losses + (1 - self.decay) * means, self.losses))


def stratified(count: int, offset: Tensor) -> Tensor:
    """(offset + i / count) mod 1, i = 0 .. count - 1: numbers in [0, 1) evenly spread, [count]; offset: one of them,
    0-dimensional. Source: arXiv:2605.07933, times of a batch; the spread is ours (docs/latents.md#ldlm)."""
    return (offset + torch.arange(count, device=offset.device, dtype=offset.dtype) / count) % 1
