# How much of one loss's gradient reaches what another part made: nothing at first, nearly all of it late.
# Entry points: ramp, gated.
# The value is never changed, only the gradient.
"""Gates of gradients between jointly trained parts."""

from __future__ import annotations

import math

from torch import Tensor


def ramp(done: float, centre: float = 0.8, slope: float = 10.0) -> float:
    """gamma: share of the diffusion loss's gradient that reaches the encoder when `done` in [0, 1] of the steps are
    made, sigmoid(slope (done - centre)). Source: arXiv:2605.07933 (diffusion-to-encoder warm-up)."""
    return 1 / (1 + math.exp(-slope * (done - centre)))


def gated(values: Tensor, gamma: float) -> Tensor:
    """The values [...] themselves, with gamma times their gradient. Source: arXiv:2605.07933."""
    if gamma == 0:
        return values.detach()
    return gamma * values + (1 - gamma) * values.detach() if gamma != 1 else values
