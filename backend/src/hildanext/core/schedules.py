# Mask rate p as a function of time t in [0, 1]: p(0) = 0, p(1) = 1, increasing.
# Entry points: SCHEDULES, Schedule.
# Each has p(t), its slope p'(t) and its inverse; the ELBO weight is w(t) = -alpha'/(1 - alpha) = p'(t) / p(t).
"""Noise schedules and their ELBO weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Curve = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Schedule:
    """rate(t, shape) = p, slope(t, shape) = dp/dt, time(p, shape) = t; elementwise on float tensors.
    Source: LLaDA2.0 arXiv:2512.15745 eq. 1 for the weight p'/p; the curves are docs/papers.md's."""

    rate: Curve
    slope: Curve
    time: Curve


def _same(value: Tensor, shape: float) -> Tensor:
    return value


def _ones(value: Tensor, shape: float) -> Tensor:
    return torch.ones_like(value)


def _cosine_rate(time: Tensor, shape: float) -> Tensor:
    return torch.sin(math.pi / 2 * time)


def _cosine_slope(time: Tensor, shape: float) -> Tensor:
    return math.pi / 2 * torch.cos(math.pi / 2 * time)


def _cosine_time(rate: Tensor, shape: float) -> Tensor:
    return torch.asin(rate) * 2 / math.pi


def _power_rate(time: Tensor, shape: float) -> Tensor:
    return time**shape


def _power_slope(time: Tensor, shape: float) -> Tensor:
    return shape * time ** (shape - 1)


def _power_time(rate: Tensor, shape: float) -> Tensor:
    return rate ** (1 / shape)


def _ends(shape: float) -> tuple[float, float]:
    low = 1 / (1 + math.exp(shape / 2))
    return low, 1 - 2 * low


def _sigmoid_rate(time: Tensor, shape: float) -> Tensor:
    low, width = _ends(shape)
    return (torch.sigmoid(shape * (time - 0.5)) - low) / width


def _sigmoid_slope(time: Tensor, shape: float) -> Tensor:
    value = torch.sigmoid(shape * (time - 0.5))
    return shape * value * (1 - value) / _ends(shape)[1]


def _sigmoid_time(rate: Tensor, shape: float) -> Tensor:
    low, width = _ends(shape)
    return torch.logit(rate * width + low) / shape + 0.5


SCHEDULES = {
    "linear": Schedule(_same, _ones, _same),
    "cosine": Schedule(_cosine_rate, _cosine_slope, _cosine_time),
    "power": Schedule(_power_rate, _power_slope, _power_time),
    "sigmoid": Schedule(_sigmoid_rate, _sigmoid_slope, _sigmoid_time),
}
