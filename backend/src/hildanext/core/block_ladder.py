# The block size at an optimiser step: warm-up, stable and decay stages that are a pure function of the step number.
# Entry points: Ladder, Stage, single_stage.
# Every step has the same number of tokens, so shares of steps are shares of tokens. L is the window.
"""Warm-up, stable, decay over block sizes."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from hildanext.config.train import LadderConfig
from hildanext.errors import ConfigError

PHASES = ("warmup", "stable", "decay")


@dataclass(frozen=True)
class Stage:
    """Steps first <= step < first + steps at one block size (tokens)."""

    phase: str
    block: int
    first: int
    steps: int


def _sizes(wanted: tuple[int, ...], window: int) -> list[int]:
    sizes = [window if size == 0 else min(size, window) for size in wanted]
    return [size for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]


def _decay(window: int, last: int) -> list[int]:
    sizes = []
    size = window // 2
    while size > last:
        sizes.append(size)
        size //= 2
    return [*sizes, last] if last < window else []


def _check(sizes: list[int], window: int) -> None:
    wrong = sorted({size for size in sizes if size < 1 or window % size})
    if wrong:
        divisors = [size for size in range(1, window + 1) if window % size == 0]
        raise ConfigError(f"ladder: block sizes {wrong} do not divide the window {window}; its divisors are {divisors}")


def _stages(config: LadderConfig, window: int, steps: int) -> tuple[Stage, ...]:
    phases = [_sizes(config.warmup, window), _sizes(config.stable, window), _decay(window, config.decay_to)]
    if config.fixed is not None:
        return single_stage("fixed", _sizes((config.fixed,), window)[0], window, steps)
    flat = [(name, size) for name, sizes in zip(PHASES, phases, strict=True) for size in sizes]
    _check([size for _, size in flat], window)
    weights = [share / len(sizes) for share, sizes in zip(config.shares, phases, strict=True) for _ in sizes if sizes]
    if not flat or min(config.shares) < 0 or sum(weights) <= 0:
        raise ConfigError(f"ladder: no stage is left (shares {config.shares}); give a block size and a positive share")
    if steps < len(flat):
        raise ConfigError(
            f"ladder: train.steps is {steps}, the ladder has {len(flat)} stages; raise steps or set fewer"
        )
    return _divide(flat, weights, steps)


def _divide(flat: list[tuple[str, int]], weights: list[float], steps: int) -> tuple[Stage, ...]:
    spare = steps - sum(1 for weight in weights if weight > 0)
    ends = [round(spare * part / sum(weights)) for part in accumulate(weights)]
    extra = list(accumulate(int(weight > 0) for weight in weights))
    ends = [end + more for end, more in zip(ends, extra, strict=True)]
    firsts = [0, *ends[:-1]]
    made = [Stage(*stage, first, end - first) for stage, first, end in zip(flat, firsts, ends, strict=True)]
    return tuple(stage for stage in made if stage.steps)


def single_stage(phase: str, block: int, window: int, steps: int) -> tuple[Stage, ...]:
    """One block size for the whole run. ConfigError where it does not divide the window."""
    _check([block], window)
    return (Stage(phase, block, 0, steps),)


@dataclass(frozen=True)
class Ladder:
    """Stages of a run of `steps` steps. Sizes above L are clipped, repeated neighbours merged, each must divide L.
    Source: LLaDA2.0 arXiv:2512.15745 sec. 4.1; shares and the even split in a phase are ours."""

    window: int
    steps: int
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, config: LadderConfig, window: int, steps: int) -> Ladder:
        """The ladder a configuration asks for. ConfigError where sizes do not divide or steps are too few."""
        return cls(window, steps, _stages(config, window, steps))

    @classmethod
    def causal(cls, window: int, steps: int) -> Ladder:
        """One stage of ordinary autoregressive training, which is block size 1."""
        return cls(window, steps, single_stage("autoregressive", 1, window, steps))

    def stage(self, step: int) -> Stage:
        """The stage of a step (counted from 0). ValueError outside the run."""
        if not 0 <= step < self.steps:
            raise ValueError(f"ladder: step {step} of {self.steps}")
        return self.stages[bisect_right([stage.first for stage in self.stages], step) - 1]

    def block(self, step: int) -> int:
        """The block size of a step, tokens."""
        return self.stage(step).block

    @property
    def blocks(self) -> tuple[int, ...]:
        """The block sizes that occur, ascending."""
        return tuple(sorted({stage.block for stage in self.stages}))

    @property
    def last(self) -> int:
        """The block size of the last step: the one the model is decoded with."""
        return self.stages[-1].block
