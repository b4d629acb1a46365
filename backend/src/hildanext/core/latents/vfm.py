# The noise adapter of variational flow maps on text: what is added to the embedding of [MASK] in an unwritten block.
# Entry points: NoiseAdapter, fresh (which positions get it), trajectory (what a few looks would write).
# The adapter reads what the discrete model reads, under the same mask, layout and store, in layers of its own.
# Letters: B rows, L positions, Q queries, W width of the adapter, D width of the child's embeddings, V vocabulary.
"""Proposals for whole blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hildanext.core.latents.layers import Sight, Stack

Logits = Callable[[Tensor], Tensor]
"""tokens of the noisy half [B, L] -> logits [n, V] at the positions that are scored, row by row."""


class NoiseAdapter(nn.Module):
    """q(z | prompt) = N(mu, sigma^2) per position. scale: root mean square of the child's embeddings, the unit of both;
    a prior of deviation `prior` of it. Source: VFM arXiv:2603.07276, its q; layers instead of a pooled prompt are
    ours."""

    def __init__(self, sizes: tuple[int, int, int, int], scale: float, prior: float, begin: float) -> None:
        super().__init__()
        hidden, width, layers, heads = sizes
        self.opening, self.stack = nn.Linear(hidden, width), Stack(layers, width, heads)
        self.mean, self.spread = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.register_buffer("scale", torch.tensor(scale))
        self.prior = prior
        nn.init.normal_(self.mean.weight, std=begin)  # zero would be a saddle where nothing is learned
        nn.init.zeros_(self.mean.bias)
        nn.init.zeros_(self.spread.weight)
        nn.init.zeros_(self.spread.bias)

    def forward(self, embedded: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
        """embedded [B, Q, D], the child's, [MASK] included -> mu and sigma [B, Q, D] in units of the embeddings; sigma
        begins as the prior's."""
        scale = self.get_buffer("scale")
        hidden = self.stack(self.opening(embedded / scale), sight)
        return scale * self.mean(hidden), scale * self.prior * self.spread(hidden).clamp(-10.0, 4.0).exp()

    def divergence(self, mean: Tensor, deviation: Tensor) -> Tensor:
        """KL(q || prior) [..], nats, summed over D. Source: VFM arXiv:2603.07276, its KL to the prior."""
        unit = self.get_buffer("scale") * self.prior
        square = (deviation / unit) ** 2
        return 0.5 * ((mean / unit) ** 2 + square - 1.0 - square.log()).sum(-1)


def fresh(written: Tensor, blocks: Tensor) -> Tensor:
    """[B, Q] bool: positions of blocks without anything written. written [B, Q] bool; blocks [B, Q] int64: their ids,
    equal ids of a row being one block."""
    ids = blocks - blocks.amin(1, keepdim=True)
    known = torch.zeros(len(ids), int(ids.max()) + 1, device=ids.device)
    return known.scatter_add(1, ids, written.float()).gather(1, ids) == 0


def trajectory(logits: Logits, tokens: Tensor, open_: Tensor, blocks: Tensor, how: tuple[int, int, float]) -> Tensor:
    """What a greedy threshold decoder writes at the positions `open_` [B, L] bool of tokens [B, L]: every look fills
    where the probability is above tau, and each block's surest position; the last fills the rest. how: looks, id of
    [MASK], tau. blocks [B, L]: ids; logits gives [MASK] no probability."""
    looks, mask_id, tau = how
    tokens = tokens.masked_fill(open_, mask_id)
    key = blocks - blocks.amin() + torch.arange(len(blocks), device=blocks.device)[:, None] * (int(blocks.max()) + 2)
    for look in range(looks):
        sure, best = logits(tokens).float().softmax(-1).max(-1)
        hidden = tokens[open_] == mask_id
        sure = torch.where(hidden, sure, -1.0)
        own = key[open_]
        top = torch.full((int(key.max()) + 1,), -1.0, device=sure.device)
        top = top.scatter_reduce(0, own, sure, "amax")
        chosen = hidden & ((sure > tau) | (sure == top[own]) | torch.tensor(look == looks - 1, device=sure.device))
        tokens = tokens.masked_scatter(open_, torch.where(chosen, best, tokens[open_]))
    return tokens
