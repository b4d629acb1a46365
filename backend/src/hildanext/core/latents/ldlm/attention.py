# Attention of queries over a context and over each other, and the two-layer network that follows it in every part.
# Entry points: Attention, FeedForward, ReadingLayer, visible.
# Letters: B rows, Q queries, C context, W width.
"""Layers that LDLM's parts share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head softmax attention without biases; keys and values are of another sequence or of the same one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.pair = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, queries: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        """[B, Q, W] from queries [B, Q, W] over seen [B, K, W]; mask [B or 1, 1, Q or 1, K] bool, True: visible."""
        query, (key, value) = self._split(self.query(queries)), map(self._split, self.pair(seen).chunk(2, dim=-1))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        whole: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return whole

    def _split(self, values: Tensor) -> Tensor:
        rows, length, width = values.shape
        return values.view(rows, length, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers, four times as wide between them, GELU."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))


class ReadingLayer(nn.Module):
    """Queries read a context and each other in one attention, then a feed-forward network, both residual;
    context: whether there is one. Source: Perceiver arXiv:2103.03206; one attention over both, arXiv:2204.14198."""

    def __init__(self, width: int, heads: int, context: bool = True) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.context = nn.LayerNorm(width) if context else nn.Identity()
        self.attention, self.mlp = Attention(width, heads), FeedForward(width)

    def begin_alike(self) -> ReadingLayer:
        """Itself, queries and keys starting from one orthogonal matrix times 1.5, so that at first a query reads what
        is like it: itself most, and of its context what has its place. Source: docs/latents.md#ldlm."""
        query = self.attention.query.weight
        if not query.is_meta:  # where sizes alone are asked for, torch has no orthogonal matrix
            nn.init.orthogonal_(query, gain=1.5)
            with torch.no_grad():
                self.attention.pair.weight[: len(query)] = query
        return self

    def forward(self, queries: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """[B, Q, W] of queries [B, Q, W]; context [B, C, W] or None; mask over [context | queries]."""
        own = self.before(queries)
        seen = own if context is None else torch.cat([self.context(context), own], dim=1)
        queries = queries + self.attention(own, seen, mask)
        whole: Tensor = queries + self.mlp(self.after(queries))
        return whole


def visible(context: Tensor | None, queries: int, causal: bool, device: torch.device) -> Tensor:
    """[B or 1, 1, Q, C + Q] bool over [context | queries]: context [B, C] bool is what may be read of it (None: there
    is none), each query sees all queries, or those up to itself where causal. Source: docs/latents.md#ldlm."""
    own = torch.ones(queries, queries, dtype=torch.bool, device=device)
    own = own.tril() if causal else own
    if context is None:
        return own[None, None]
    beside = own.expand(len(context), 1, queries, queries)
    return torch.cat([context[:, None, None, :].expand(-1, 1, queries, -1), beside], dim=3)
