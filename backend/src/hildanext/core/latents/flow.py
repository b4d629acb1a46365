# Flow matching between latents and noise on a straight path, and the samplers that walk it back.
# Entry points: interpolated, velocity, logit_normal, guided, SAMPLERS (euler, heun), walked.
# Time runs from 0 (latents) to 1 (noise). Shapes are any; times broadcast.
"""Rectified flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Field = Callable[[Tensor, float], Tensor]
"""(z at time t, t) -> velocity, of z's shape."""


def interpolated(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """z_t = (1 - t) z_0 + t noise. Source: Cola arXiv:2605.06548; rectified flow arXiv:2209.03003 eq. 1."""
    return (1.0 - time) * clean + time * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """dz_t / dt = noise - z_0, the target of the network. Source: rectified flow arXiv:2209.03003 eq. 1."""
    return noise - clean


def logit_normal(shape: tuple[int, ...], mean: float, deviation: float, rng: torch.Generator) -> Tensor:
    """Times in (0, 1), float32 on the CPU: the sigmoid of a normal variable. Source: arXiv:2403.03206 eq. 19."""
    return torch.sigmoid(mean + deviation * torch.randn(shape, generator=rng))


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """u + w (c - u); w = 1 is the conditional field. Source: classifier-free guidance arXiv:2207.12598 eq. 6, whose
    weight is w - 1."""
    return unconditional + weight * (conditional - unconditional)


def euler(field: Field, latent: Tensor, times: list[float]) -> Tensor:
    """One evaluation per step: z <- z + (t' - t) v(z, t)."""
    for now, then in zip(times, times[1:], strict=False):
        latent = latent + (then - now) * field(latent, now)
    return latent


def heun(field: Field, latent: Tensor, times: list[float]) -> Tensor:
    """Two evaluations per step but the last, whose end has no noise left: the mean of both ends' velocities.
    Source: arXiv:2206.00364 algorithm 1."""
    for now, then in zip(times, times[1:], strict=False):
        first = field(latent, now)
        moved = latent + (then - now) * first
        latent = moved if then == 0 else latent + (then - now) * (first + field(moved, then)) / 2
    return latent


SAMPLERS: Mapping[str, Callable[[Field, Tensor, list[float]], Tensor]] = {"euler": euler, "heun": heun}


def walked(field: Field, noise: Tensor, steps: int, sampler: str = "euler") -> Tensor:
    """Latents from noise in `steps` equal steps of time. ValueError for a count below 1."""
    if steps < 1:
        raise ValueError(f"flow: {steps} steps, at least 1")
    return SAMPLERS[sampler](field, noise, [1.0 - step / steps for step in range(steps + 1)])


def evaluations(steps: int, sampler: str) -> int:
    """Evaluations of the field that `walked` makes, a count."""
    return 2 * steps - 1 if sampler == "heun" else steps
