# The decoding policies a second time, from their papers, in lists and loops; nothing of the package is used.
# Entry points: RULES (policy type -> rule), Moment (what a rule sees), uniform (its randomness).
# A rule answers (positions to fill, positions to edit, positions to mask again).
"""Policies of the independent oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WORD, GOLDEN = (1 << 64) - 1, 0x9E3779B97F4A7C15
SAMPLE, CHOICE = 1, 2
Choice = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True)
class Seen:
    """What one position predicts."""

    token: int
    p: float
    entropy: float
    margin: float


@dataclass(frozen=True)
class Key:
    """What random numbers depend on beside position and step."""

    seed: int
    sample: int

    def uniform(self, position: int, step: int, purpose: int) -> float:
        """splitmix64's finaliser over (seed, sample, position, step, purpose), in Python's integers."""
        state = _mix((self.seed + GOLDEN) & WORD)
        for key in (self.sample, position, step, purpose):
            state = _mix(((state ^ key) + GOLDEN) & WORD)
        return (state >> 11) / (1 << 53)


def _mix(value: int) -> int:
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & WORD
    return value ^ value >> 31


@dataclass
class Moment:
    """A block before a step: all tokens x; its editable places; those of them that are hidden; what they predict;
    ready: whether masks may be filled on a guess."""

    policy: dict[str, Any]
    key: Key
    x: list[int]
    places: list[int]
    masks: int
    step: int = 0
    hidden: list[int] = field(default_factory=list)
    seen: dict[int, Seen] = field(default_factory=dict)
    ready: bool = True

    @property
    def visible(self) -> list[int]:
        """Editable places that hold a token."""
        return [i for i in self.places if i not in self.hidden]

    @property
    def quota(self) -> int:
        """Masks to fill now when all of them are spread over policy['steps'] steps, remainder first."""
        steps = self.policy["steps"] or max(1, self.masks)
        return self.least(max(1, self.masks // steps + (1 if self.step < self.masks % steps else 0)))

    def least(self, count: int = 1) -> int:
        """How many must be filled, sure or not."""
        return count if self.ready else 0

    def sure(self, threshold: str = "tau_mask") -> list[int]:
        """Hidden places whose token is more probable than the threshold."""
        return [i for i in self.hidden if self.seen[i].p > self.policy[threshold]]

    def best(self, count: int, among: Sequence[int] | None = None, score: dict[int, float] | None = None) -> list[int]:
        """The `count` places of highest score (the probability), ties to the left."""
        value = score or {i: one.p for i, one in self.seen.items()}
        return sorted(self.hidden if among is None else among, key=lambda i: (-value[i], i))[:count]


def _threshold_edit(now: Moment) -> Choice:
    fill, tau, least = now.sure(), now.policy["tau_edit"], now.policy["minimum_transfers"]
    if now.ready and len(fill) < min(least, len(now.hidden)):
        fill = now.best(least)
    changed = [i for i in now.visible if tau is not None and now.seen[i].p > tau and now.seen[i].token != now.x[i]]
    return fill, changed, []


def _at_least_the_best(now: Moment) -> Choice:
    return now.sure() or now.best(now.least()), [], []


def _static(now: Moment) -> Choice:
    return now.best(now.quota), [], []


def _margin(now: Moment) -> Choice:
    return now.best(now.quota, score={i: one.margin for i, one in now.seen.items()}), [], []


def _random(now: Moment) -> Choice:
    drawn = {i: now.key.uniform(i, now.step, CHOICE) for i in now.hidden}
    return now.best(now.quota, score=drawn), [], []


def _random_topk(now: Moment) -> Choice:
    heat = now.policy["position_temperature"]
    noise = {i: -math.log(-math.log(now.key.uniform(i, now.step, CHOICE))) for i in now.hidden}
    return now.best(now.quota, score={i: now.seen[i].p + heat * noise[i] for i in now.hidden}), [], []


def _entropy_bound(now: Moment) -> Choice:
    fill: list[int] = []
    total = 0.0
    for i in sorted(now.hidden, key=lambda i: (now.seen[i].entropy, i)):
        total += now.seen[i].entropy
        if (fill or not now.ready) and total > now.policy["gamma"]:
            break
        fill.append(i)
    return fill, [], []


def _factor(now: Moment) -> Choice:
    order, count = now.best(len(now.hidden)), 0
    while count < len(order) and (count + 2) * (1 - now.seen[order[count]].p) < now.policy["factor"]:
        count += 1
    return order[: max(now.least(), count)], [], []


def _hierarchy(now: Moment) -> Choice:
    runs: list[list[int]] = []
    for i in now.hidden:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    low = now.sure("tau_low")
    leaders = [i for run in runs for i in now.best(1, run) if i in low]
    return sorted({*leaders, *now.sure(), *now.best(now.least())}), [], []


def _remask(now: Moment) -> Choice:
    back = _taken_back(now)
    return sorted({*now.sure(), *now.best(now.least(min(len(now.hidden), len(back) + 1)))}), [], back


def _taken_back(now: Moment) -> list[int]:
    policy, left = now.policy, len(now.hidden)
    if not now.ready or not now.visible or left < 2 or now.step >= policy["window"] or now.step % policy["stride"]:
        return []
    trust = {i: now.seen[i].p if now.seen[i].token == now.x[i] else 0.0 for i in now.visible}
    low, high = policy["minimum_ratio"], policy["target_ratio"]
    count = min(int((low + (high - low) * left / now.masks) * len(trust) + 0.5), left - 1)
    cap = _quantile(sorted(trust.values()), policy["cap_percentile"])
    return sorted((i for i in trust if trust[i] < cap), key=lambda i: (trust[i], i))[:count]


def _quantile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = ordered[math.floor(place)]
    return low + (ordered[math.ceil(place)] - low) * (place - math.floor(place))


RULES = {
    "threshold_edit": _threshold_edit, "credit": _at_least_the_best, "static_quota": _static, "margin": _margin,
    "random": _random, "random_topk": _random_topk, "entropy_bound": _entropy_bound, "factor": _factor,
    "hierarchy": _hierarchy, "remask": _remask,
}  # fmt: skip
