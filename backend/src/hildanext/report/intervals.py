# Uncertainty of what evaluation reports: shares, means and ratios of sums with 95 % intervals.
# Entry points: Measure, share, mean, ratio.
# Standard library only; every measure carries how many items it rests on.
"""Point estimates with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Z = 1.959963984540054


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
    """The mean of independent values with its normal interval; a single value has the interval [value, value]."""
    if not values:
        raise ValueError("mean: no values")
    average = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - average) ** 2 for v in values) / max(1, len(values) - 1))
    half = Z * spread / math.sqrt(len(values))
    return Measure(average, average - half, average + half, len(values), unit)


def ratio(tops: Sequence[float], bottoms: Sequence[float], unit: str = "") -> Measure:
    """sum(tops) / sum(bottoms) over items, e.g. nats per token; interval by linearisation (the delta method)."""
    if len(tops) != len(bottoms) or math.fsum(bottoms) <= 0:
        raise ValueError(f"ratio: {len(tops)} numerators, {len(bottoms)} denominators of sum {math.fsum(bottoms)}")
    total, count = math.fsum(bottoms), len(tops)
    value = math.fsum(tops) / total
    residual = math.fsum((top - value * bottom) ** 2 for top, bottom in zip(tops, bottoms, strict=True))
    half = Z * math.sqrt(residual * count / max(1, count - 1)) / total
    return Measure(value, value - half, value + half, count, unit)
