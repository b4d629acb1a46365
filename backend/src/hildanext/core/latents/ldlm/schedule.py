# The tangent noise schedule: noise over signal is d tan(pi t / 2).
# Entry points: Tangent.
# alpha and sigma are cosine and sine of one angle, so the path is a rotation and its velocity has a closed form at both
# ends, where the tangent has none.
"""Noise schedule of latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tangent:
    """alpha(t) = 1 / sqrt(1 + d^2 tan^2(pi t / 2)), sigma^2 = 1 - alpha^2, t in [0, 1] from latent to noise; a larger
    `d` is more noise at the same time. Source: arXiv:2605.07933 (tangent schedule, d = 3); the form is that of
    arXiv:2402.19097."""

    d: float = 3.0

    def alpha(self, time: Tensor) -> Tensor:
        """Factor of the latent, float like time [...]."""
        return _cosine(time) / self._radius(time)

    def sigma(self, time: Tensor) -> Tensor:
        """Standard deviation of the noise, float like time [...]."""
        return self.d * torch.sin(math.pi / 2 * time) / self._radius(time)

    def noised(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """alpha(t) latents + sigma(t) noise; latents, noise [B, M, K], time [B]."""
        return _wide(self.alpha(time)) * latents + _wide(self.sigma(time)) * noise

    def noise_in(self, noised: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """The noise that noised [B, M, K] holds if its latents are these; time [B] > 0."""
        return (noised - _wide(self.alpha(time)) * latents) / _wide(self.sigma(time))

    def velocity(self, noised: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """d noised / d t along the path from these latents through noised: angle' (alpha noise - sigma latents);
        time [B] > 0. Source: docs/latents.md#ldlm."""
        noise = self.noise_in(noised, latents, time)
        along = _wide(self.alpha(time)) * noise - _wide(self.sigma(time)) * latents
        return _wide(self.turn(time)) * along

    def turn(self, time: Tensor) -> Tensor:
        """Derivative of the angle atan(d tan(pi t / 2)) by t: (pi / 2) d / (cos^2 + d^2 sin^2)."""
        return math.pi / 2 * self.d / self._radius(time).square()

    def _radius(self, time: Tensor) -> Tensor:
        return (_cosine(time).square() + (self.d * torch.sin(math.pi / 2 * time)).square()).sqrt()


def _cosine(time: Tensor) -> Tensor:
    return torch.cos(math.pi / 2 * time).clamp(min=0)  # at t = 1 it is below 0 by rounding


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None]
