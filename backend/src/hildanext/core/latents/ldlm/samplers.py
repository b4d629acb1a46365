# From noise to latents in any number of forwards: DDIM, or Euler steps along the probability-flow ODE.
# Entry points: denoised, SAMPLERS, Predict.
# The last forward's prediction is the result: a predictor that knows the latent gives it back in any number of steps.
"""Samplers of latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hildanext.core.latents.ldlm.schedule import Tangent

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noised [B, M, K], time [B], the prediction before [B, M, K], zeros at first) -> latents [B, M, K]."""


def denoised(predict: Predict, noise: Tensor, steps: int, schedule: Tangent, sampler: str = "ddim") -> Tensor:
    """Latents [B, M, K] from noise [B, M, K] in `steps` forwards at times 1, 1 - 1/steps, ..., 1/steps, each told the
    prediction before it. Source: arXiv:2605.07933 (self-conditioning at generation); DDIM arXiv:2010.02502 eq. 12 at
    eta 0. ValueError for steps below 1."""
    if steps < 1:
        raise ValueError(f"steps {steps}, expected 1 or more")
    noised, found, step = noise, torch.zeros_like(noise), SAMPLERS[sampler]
    times = torch.linspace(1, 0, steps + 1, dtype=noise.dtype, device=noise.device)
    for index in range(steps):
        time, following = times[index].expand(len(noise)), times[index + 1].expand(len(noise))
        found = predict(noised, time, found)
        if index < steps - 1:
            noised = step(schedule, noised, found, time, following)
    return found


def _ddim(schedule: Tangent, noised: Tensor, latents: Tensor, time: Tensor, following: Tensor) -> Tensor:
    return schedule.noised(latents, schedule.noise_in(noised, latents, time), following)


def _euler(schedule: Tangent, noised: Tensor, latents: Tensor, time: Tensor, following: Tensor) -> Tensor:
    return noised + (following - time)[:, None, None] * schedule.velocity(noised, latents, time)


SAMPLERS: dict[str, Callable[[Tangent, Tensor, Tensor, Tensor, Tensor], Tensor]] = {"ddim": _ddim, "euler": _euler}
