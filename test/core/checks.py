# Statistical checks: a mean against its expected value, a sum of draws against the probabilities it was drawn with.
# Entry points: assert_mean_is, assert_drawn_with, rng.
# Four standard errors everywhere; the seeds are fixed.
"""Checks within four standard errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_mean_is(values: Tensor, expected: float, rounding: float = 1e-12) -> None:
    """values: independent along dim 0; rounding: what is allowed beside four standard errors."""
    values = values.double()
    found, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    assert abs(found - expected) <= 4 * error + rounding, (found, expected, error)


def assert_drawn_with(events: Tensor, probability: Tensor, bins: int = 10) -> None:
    """events bool and probability float, same shape: in each of `bins` groups of equal size, sorted by probability, the
    number of events is that of independent draws."""
    order = probability.flatten().argsort()
    pieces = zip(events.flatten()[order].chunk(bins), probability.flatten()[order].chunk(bins), strict=True)
    for seen, expected in pieces:
        spread = math.sqrt(float((expected * (1 - expected)).sum()))
        assert abs(float(seen.double().sum() - expected.sum())) <= 4 * spread + 1e-9
