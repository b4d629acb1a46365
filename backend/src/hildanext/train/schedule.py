# The learning rate at an optimiser step, as a factor on the peak rate: a pure function of the step number.
# Entry points: factor.
# Every schedule begins with a linear warm-up; linear, cosine and wsd end at `final` times the peak.
"""Learning-rate schedules."""

from __future__ import annotations

import math

from hildanext.config.train import OptimizerConfig


def factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """Share of the peak rate, in (0, 1], at `step` (counted from 0) of `steps`."""
    warm = round(config.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return _after(config, (step - warm) / max(1, steps - warm), config.decay * steps / max(1, steps - warm))


def _after(config: OptimizerConfig, done: float, tail: float) -> float:
    fall = 1.0 - config.final
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "linear":
        return 1.0 - fall * done
    if config.schedule == "cosine":
        return 1.0 - fall * (1.0 - math.cos(math.pi * done)) / 2.0
    return 1.0 - fall * max(0.0, (done - (1.0 - tail)) / tail)
