# What a reward is given and gives: answers of a group in, one number each out.
# Entry points: Reward (base of the plugins in measure/rewards), Attempt, total.
# Rewards are summed with their weights; the first one named is what decides whether a group is all right or all wrong.
"""Base of the rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from hildanext.registry import Plugin


@dataclass(frozen=True)
class Attempt:
    """One answer. row: what the prompt's file has beside it; reply: its text; group: which prompt, a number; tokens: of
    the answer; forwards: that it took; stopped: it ended by itself; turns: what was asked, as {role, content}."""

    row: Mapping[str, Any]
    reply: str
    group: int = 0
    tokens: int = 0
    forwards: int = 1
    stopped: bool = True
    turns: Sequence[Mapping[str, Any]] = ()


class Reward(Plugin):
    """A number for each answer, usually in [0, 1]; fields are settings."""

    weight: float = Field(1.0, description="factor in the sum of the rewards")

    def ready(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """HildaError, before a model is loaded, where something it needs is missing from these rows or this machine."""

    def score(self, attempt: Attempt) -> float:
        """Of one answer."""
        raise ValueError(f"reward {type(self).__name__} defines no score")

    def scores(self, attempts: Sequence[Attempt]) -> list[float]:
        """Of each answer; groups whole."""
        return [self.score(attempt) for attempt in attempts]


def total(rewards: Sequence[Reward], attempts: Sequence[Attempt]) -> tuple[Tensor, Tensor]:
    """(weighted sums [N], every reward's own scores [K, N]) float64. Source: docs/rl.md."""
    scores = torch.tensor([reward.scores(attempts) for reward in rewards], dtype=torch.float64)
    weights = torch.tensor([reward.weight for reward in rewards], dtype=torch.float64)
    return weights @ scores, scores
