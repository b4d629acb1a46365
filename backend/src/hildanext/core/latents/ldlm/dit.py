# The denoiser of latents: a transformer whose norms are scaled, shifted and gated by the time.
# Entry points: DiT, sinusoids.
# It predicts the latent itself, and is told its own last prediction and, where there is one, the states of a prompt.
"""Diffusion transformer over latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hildanext.core.latents.ldlm.attention import Attention, FeedForward, visible
from hildanext.core.latents.ldlm.perceiver import normalised, places


def sinusoids(time: Tensor, width: int) -> Tensor:
    """[B, width] cosines and sines of 1000 t at geometric frequencies; time [B] in [0, 1], width even.
    Source: arXiv:1706.03762 sec. 3.5."""
    steps = torch.arange(width // 2, device=time.device, dtype=time.dtype)
    angles = 1000 * time[:, None] * torch.exp(-math.log(10_000) * steps / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class DiTLayer(nn.Module):
    """Attention over [prompt | latents], feed-forward network, each after a norm scaled and shifted by the time, and
    gated by it, the gates 0 at first. Source: DiT arXiv:2212.09748 sec. 3.2 (adaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads), FeedForward(width)
        self.context = nn.LayerNorm(width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor, about: Tensor) -> Tensor:
        """latents [B, M, W]; context [B, C, W]; mask over [context | latents]; about [B, W]: of the time."""
        scales = self.modulation(F.silu(about))[:, None].chunk(6, dim=-1)
        shift, scale, gate, later_shift, later_scale, later_gate = scales
        own = _modulated(latents, shift, scale)
        latents = latents + gate * self.attention(own, torch.cat([self.context(context), own], dim=1), mask)
        whole: Tensor = latents + later_gate * self.mlp(_modulated(latents, later_shift, later_scale))
        return whole


def _modulated(values: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return normalised(values) * (1 + scale) + shift


class DiT(nn.Module):
    """x0 prediction of latents [B, M, K] from their noised form. Source: arXiv:2605.07933 (DiT, x0 prediction,
    self-conditioning arXiv:2208.04202); reading the states of a prompt is ours."""

    def __init__(self, states: int, shape: tuple[int, int], length: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        latents, size = shape
        self.width = width
        self.read, self.places = nn.Linear(2 * size, width), places(latents, width)
        self.prompt, self.prompt_places = nn.Linear(states, width), places(length, width)
        self.nothing = places(1, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(DiTLayer(width, heads) for _ in range(layers))
        self.last, self.out = nn.Linear(width, 2 * width), nn.Linear(width, size)
        for part in (self.last, self.out):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, noised: Tensor, time: Tensor, before: Tensor, prompt: Tensor, given: Tensor) -> Tensor:
        """Latents [B, M, K] from noised [B, M, K] at time [B]; before [B, M, K]: the prediction before, zeros where
        there is none; prompt [B, P, D] states, given [B, P] bool: which of them there are, none of a free text."""
        values = self.read(torch.cat([noised, before], dim=-1)) + self.places
        context = self.prompt(prompt) + self.prompt_places[: prompt.shape[1]]
        context = torch.cat([self.nothing.expand(len(noised), -1, -1), context], dim=1)
        mask = visible(F.pad(given, (1, 0), value=True), values.shape[1], False, values.device)
        about = self.time(sinusoids(time, self.width))
        for layer in self.layers:
            values = layer(values, context, mask, about)
        shift, scale = self.last(F.silu(about))[:, None].chunk(2, dim=-1)
        found: Tensor = self.out(_modulated(values, shift, scale))
        return found
