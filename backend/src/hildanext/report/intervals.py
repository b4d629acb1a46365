# Uncertainty of what evaluation reports: shares, means and ratios of sums with 95 % intervals.
# Entry points: Measure, share, mean, ratio.
# Every measure carries how many items it rests on. Means and ratios are bootstrapped over items with a fixed seed: an
# interval ends at values that the items can give, so none is below zero where all are above, and it repeats.
"""Point estimates with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Z = 1.959963984540054
RESAMPLES = 2000
AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Measure:
    """A value with its 95 % interval [low, high], the count of items it rests on and its unit."""

    value: float
    low: float
    high: float
    items: int
    unit: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def text(self) -> str:
        """For a table: value and interval, shares in per cent."""
        if self.unit == "share":
            return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]{' ' + self.unit if self.unit else ''}"


def share(successes: int, items: int) -> Measure:
    """A share of items with Wilson's score interval; ValueError without items or with more successes than items."""
    if not 0 <= successes <= items or items == 0:
        raise ValueError(f"share: {successes} of {items}")
    p, z2 = successes / items, Z * Z
    middle = (p + z2 / (2 * items)) / (1 + z2 / items)
    half = Z / (1 + z2 / items) * math.sqrt(p * (1 - p) / items + z2 / (4 * items * items))
    return Measure(p, max(0.0, middle - half), min(1.0, middle + half), items, "share")


def mean(values: Sequence[float], unit: str = "") -> Measure:
    """The mean of independent values with its bootstrap interval; a single value has the interval [value, value]."""
    if not values:
        raise ValueError("mean: no values")
    return _bootstrapped(values, [1.0] * len(values), unit)


def ratio(tops: Sequence[float], bottoms: Sequence[float], unit: str = "") -> Measure:
    """sum(tops) / sum(bottoms) over items, e.g. nats per token over documents, with its bootstrap interval.
    bottoms >= 0."""
    if len(tops) != len(bottoms) or math.fsum(bottoms) <= 0 or min(bottoms) < 0:
        raise ValueError(f"ratio: {len(tops)} numerators, {len(bottoms)} denominators of sum {math.fsum(bottoms)}")
    return _bootstrapped(tops, bottoms, unit)


def _bootstrapped(tops: Sequence[float], bottoms: Sequence[float], unit: str) -> Measure:
    value, count = math.fsum(tops) / math.fsum(bottoms), len(tops)
    rng, pairs = np.random.default_rng(0), np.array([tops, bottoms], dtype=np.float64).T
    found: list[float] = []
    while len(found) < RESAMPLES:
        size = min(RESAMPLES - len(found), max(1, AT_ONCE // count))
        sums = rng.multinomial(count, np.full(count, 1 / count), size=size) @ pairs
        found += (sums[:, 0] / sums[:, 1])[sums[:, 1] > 0].tolist()
    low, high = np.quantile(found, [0.025, 0.975])
    return Measure(value, min(value, float(low)), max(value, float(high)), count, unit)
