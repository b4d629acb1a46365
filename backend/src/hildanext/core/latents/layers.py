# Transformer layers that see what a mask, a layout or a store lets them see, with or without conditioning on time.
# Entry points: Sight (what a forward sees), Condition, Layer, Stack, time_features.
# Store and layouts are those of the discrete models: keys go through `cache.update`, attention through `attend`.
# Letters: B rows, Q queries, K keys, H heads, D width of a head, W width, C width of the condition.
"""Layers of the latent models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention, silu

THETA = 10_000.0


@dataclass(frozen=True)
class Sight:
    """positions [B, Q] int64 (rotary; only differences matter); mask [B or 1, 1, Q, K] additive, or bool with True
    visible, None: all; layout: one of models/attention.py instead of a mask; cache: a view of the decoder's store;
    first: number of the first layer's state in it."""

    positions: Tensor
    mask: Tensor | None = None
    layout: Any = None
    cache: Any = None
    first: int = 0


def rotated(values: Tensor, positions: Tensor) -> Tensor:
    """values [B, H, Q, D] with each pair of channels (i, i + D/2) turned by its position's angle.
    Source: RoPE arXiv:2104.09864 eq. 34."""
    half = values.shape[-1] // 2
    rates = THETA ** (-torch.arange(half, device=values.device, dtype=torch.float32) / half)
    angle = (positions[:, None, :, None].float() * rates).to(values.dtype)
    left, right = values[..., :half], values[..., half:]
    return torch.cat([left * angle.cos() - right * angle.sin(), left * angle.sin() + right * angle.cos()], -1)


def time_features(time: Tensor, width: int) -> Tensor:
    """Sines and cosines [..., width] of times [...] in [0, 1]. Source: DiT arXiv:2212.09748 sec. 3.2, timesteps of
    1,000."""
    half = width // 2
    rates = torch.exp(-math.log(THETA) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
    angle = 1000.0 * time[..., None].float() * rates
    return torch.cat([angle.cos(), angle.sin()], -1)


class Attention(nn.Module):
    """Softmax attention with normalised queries and keys; bias-free."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"layers: width {width} is no multiple of 2 x {heads} heads")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads, eps=1e-6), nn.RMSNorm(width // heads, eps=1e-6)

    def forward(self, hidden: Tensor, sight: Sight, number: int) -> Tensor:
        """hidden [B, Q, W] -> [B, Q, W]; number: of the layer's state in the store."""
        query, key, value = (self._split(part(hidden)) for part in (self.q_proj, self.k_proj, self.v_proj))
        query, key = (rotated(norm(one), sight.positions) for norm, one in ((self.q_norm, query), (self.k_norm, key)))
        if sight.cache is not None:
            key, value = sight.cache.update(key, value, number)
        if sight.layout is not None:
            seen = sight.layout.attend(query, key, value, None)
        else:
            seen = scaled_dot_product_attention(query, key, value, attn_mask=sight.mask)
        out: Tensor = self.o_proj(seen.transpose(1, 2).flatten(2))
        return out

    def _split(self, values: Tensor) -> Tensor:
        return values.view(*values.shape[:2], self.heads, -1).transpose(1, 2)


class Gated(nn.Module):
    """SiLU-gated feed-forward. Source: arXiv:2002.05202 eq. 6."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., W] -> [..., W]."""
        out: Tensor = self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return out


@dataclass(frozen=True)
class Condition:
    """What positions are conditioned on: one of the rows of table [n, C] each, place [B, Q] int64. Positions of one
    time share a row, so that what is made of it is made once."""

    table: Tensor
    place: Tensor

    def of(self, made: nn.Module) -> Tensor:
        """made(table), spread over the positions [B, Q, ...]."""
        return embedding(self.place, made(self.table))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm. condition: C, 0 for none: shift, scale and gate of both parts
    come from it and begin at zero, so that the layer begins as the identity. Source: adaLN-Zero, DiT arXiv:2212.09748
    sec. 3.2."""

    def __init__(self, width: int, heads: int, condition: int = 0) -> None:
        super().__init__()
        affine = not condition
        self.self_attn, self.mlp = Attention(width, heads), Gated(width, 3 * width)
        self.norm_1 = nn.RMSNorm(width, eps=1e-6, elementwise_affine=affine)
        self.norm_2 = nn.RMSNorm(width, eps=1e-6, elementwise_affine=affine)
        self.modulation = nn.Linear(condition, 6 * width) if condition else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, hidden: Tensor, sight: Sight, number: int, condition: Condition | None = None) -> Tensor:
        """hidden [B, Q, W] -> [B, Q, W]."""
        if self.modulation is None or condition is None:
            hidden = hidden + self.self_attn(self.norm_1(hidden), sight, number)
            out: Tensor = hidden + self.mlp(self.norm_2(hidden))
            return out
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = condition.of(self.modulation).chunk(6, -1)
        inner = self.norm_1(hidden) * (1 + scale_1) + shift_1
        hidden = hidden + gate_1 * self.self_attn(inner, sight, number)
        after: Tensor = hidden + gate_2 * self.mlp(self.norm_2(hidden) * (1 + scale_2) + shift_2)
        return after


class Stack(nn.Module):
    """Layers with a last norm."""

    def __init__(self, layers: int, width: int, heads: int, condition: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, condition) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, hidden: Tensor, sight: Sight, condition: Condition | None = None) -> Tensor:
        """hidden [B, Q, W] -> [B, Q, W]."""
        for number, layer in enumerate(self.layers, sight.first):
            hidden = layer(hidden, sight, number, condition)
        out: Tensor = self.norm(hidden)
        return out
