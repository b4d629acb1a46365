# Between a text's hidden states and a fixed number of latents: learned queries that read.
# Entry points: Encoder, Decoder, Standardised, normalised, places, waves.
# Padding is never read: the encoder masks it, and a position of the decoder sees only those before it, so what stands
# behind a text's end changes nothing of the text.
"""Perceiver encoder and decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hildanext.core.latents.ldlm.attention import ReadingLayer, visible


def normalised(values: Tensor) -> Tensor:
    """Each vector of values [..., K] with mean 0 and variance 1. Source: docs/latents.md#ldlm."""
    return F.layer_norm(values, values.shape[-1:])


def places(count: int, width: int) -> nn.Parameter:
    """A learned vector for each of `count` positions, [count, W]. Source: docs/latents.md#ldlm."""
    return nn.Parameter(torch.randn(count, width) * width**-0.5)


def waves(count: int, width: int, length: int) -> nn.Parameter:
    """A learned vector for each of `count` places evenly along `length` positions, [count, W], as cosines and sines of
    its position at first, wavelengths from 2 pi to 2 `length`: near places are alike, whatever their number.
    Source: sinusoids arXiv:1706.03762 sec. 3.5; learned, and for latents beside positions, here (docs/latents.md#ldlm).
    """
    where, half = (torch.arange(count) + 0.5) * (length / count) - 0.5, width // 2
    angles = where[:, None] * (torch.arange(half) * (math.log(math.pi / length) / max(1, half - 1))).exp()
    return nn.Parameter(F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2)))


class Standardised(nn.Module):
    """Latents with mean 0 and variance 1 over texts in every channel of every latent: pure noise is of their scale, and
    an encoder cannot make them easier to predict by saying less, as long as `least`, added to the variance, is far
    below any variance (docs/latents.md#what-keeps-its-latents-from-saying-nothing). Training takes the texts of the
    forward, and keeps running means for evaluation and for a single text. Source: arXiv:1502.03167; its place here is
    ours."""

    mean: Tensor
    variance: Tensor

    def __init__(self, latents: int, size: int, decay: float = 0.95, least: float = 1e-12) -> None:
        super().__init__()
        self.decay, self.least = decay, least
        self.register_buffer("mean", torch.zeros(latents, size))
        self.register_buffer("variance", torch.ones(latents, size))

    def forward(self, values: Tensor) -> Tensor:
        """[B, M, K] of values [B, M, K]."""
        mean, variance = self.mean, self.variance
        values = values.to(mean.dtype)  # under autocast they come in fewer bits
        if self.training and len(values) > 1:
            variance, mean = torch.var_mean(values, dim=0, correction=0)
            with torch.no_grad():
                self.mean.lerp_(mean, 1 - self.decay)
                self.variance.lerp_(variance * len(values) / (len(values) - 1), 1 - self.decay)
        return (values - mean) * (variance + self.least).rsqrt()


class Encoder(nn.Module):
    """Hidden states of at most `length` positions become `latents` vectors of `size` channels, standardised.
    Source: arXiv:2605.07933 (Perceiver encoder)."""

    def __init__(self, states: int, shape: tuple[int, int], length: int, layers: int, heads: int) -> None:
        super().__init__()
        latents, size = shape
        self.read = nn.Linear(states, states)
        self.places, self.queries = waves(length, states, length), waves(latents, states, length)
        self.layers = nn.ModuleList(ReadingLayer(states, heads).begin_alike() for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(states), nn.Linear(states, size)
        self.standard = Standardised(latents, size)

    def forward(self, states: Tensor, text: Tensor) -> Tensor:
        """Latents [B, M, K] of states [B, L, D]; text [B, L] bool: positions that are no padding."""
        context = self.read(states) + self.places[: states.shape[1]]
        queries = self.queries.expand(len(states), -1, -1)
        mask = visible(text, queries.shape[1], False, states.device)
        for layer in self.layers:
            queries = layer(queries, context, mask)
        found: Tensor = self.standard(self.out(self.norm(queries)))
        return found


class Decoder(nn.Module):
    """Latents become hidden states of the positions asked for; a position reads all latents and the positions before
    it. Source: arXiv:2605.07933 (Perceiver decoder); reading only backwards is ours."""

    def __init__(self, states: int, shape: tuple[int, int], length: int, layers: int, heads: int) -> None:
        super().__init__()
        latents, size = shape
        self.read = nn.Linear(size, states)
        self.places, self.queries = waves(latents, states, length), waves(length, states, length)
        self.layers = nn.ModuleList(ReadingLayer(states, heads).begin_alike() for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(states), nn.Linear(states, states)

    def forward(self, latents: Tensor, length: int) -> Tensor:
        """States [B, length, D] of latents [B, M, K]."""
        context = self.read(latents) + self.places
        queries = self.queries[:length].expand(len(latents), -1, -1)
        whole = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        mask = visible(whole, length, True, latents.device)
        for layer in self.layers:
            queries = layer(queries, context, mask)
        found: Tensor = self.out(self.norm(queries))
        return found
