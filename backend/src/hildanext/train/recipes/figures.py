# What metrics.jsonl says of a rollout and of a step that learns from it, and which groups a step learns from.
# Entry points: kept_groups, told, costs, moves, forwards_ahead, forwards_learned.
# Rewards and costs are of a whole rollout, how far ratios moved and forwards are of a step. A forward is one of one
# answer's row; those before the first update stand at the rollout's first step.
"""Figures of reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from hildanext.core.policy_objective import Known, PolicyObjective
from hildanext.core.reward import Reward
from hildanext.decoding.request import Result

QUANTILES = (0.5, 0.9, 1.0)


def kept_groups(sums: torch.Tensor, first: torch.Tensor, drop: tuple[str, ...], narrow: float) -> torch.Tensor:
    """[P] bool of sums of rewards and of the first reward, both [P, G]: False where `drop` leaves the group out."""
    gone = {
        "all_right": (first >= 1).all(dim=1),
        "all_wrong": (first <= 0).all(dim=1),
        "narrow": sums.amax(dim=1) - sums.amin(dim=1) < narrow,
    }
    return ~torch.stack([gone[name] for name in drop] or [torch.zeros(len(sums), dtype=torch.bool)]).any(dim=0)


def told(rewards: Sequence[Reward], scores: torch.Tensor) -> dict[str, float]:
    """The mean of each reward by name; scores [K, N]."""
    names = [type(reward).__module__.rsplit(".", 1)[-1] for reward in rewards]
    return {f"reward_{name}": float(own.mean()) for name, own in zip(names, scores, strict=True)}


def costs(results: Sequence[Result]) -> dict[str, float]:
    """Length, share cut off, edits and speed of the answers, as means; `forwards` is their sum."""
    tokens, forwards = (sum(getattr(one.metrics, name) for one in results) for name in ("tokens", "forwards"))
    stopped = sum(one.finish_reason == "eos" for one in results) / len(results)
    return {
        "answer": tokens / len(results), "truncated": 1 - stopped,
        "edits": sum(sum(one.metrics.edits_applied) for one in results) / len(results),
        "tokens_per_forward": tokens / forwards if forwards else math.nan, "forwards": float(forwards),
    }  # fmt: skip


def moves(learned: Iterable[Known]) -> dict[str, float]:
    """Quantiles of |log ratio| over what a step learned: of answers per token (|delta| / L), or of tokens, as the
    objective has it. Source: docs/rl.md."""
    found = [value.double().cpu() for known in learned for value in known.moved]
    values = torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
    if not len(values):
        return {}
    return {f"moved_{round(100 * share)}": float(values.quantile(share)) for share in QUANTILES}


def forwards_ahead(known: Sequence[Known], objective: PolicyObjective, rows: int) -> float:
    """Forwards of batches of `rows` before the first update: by the policy that answered and by the reference."""
    each = int(objective.reads_old) + int(objective.compares and bool(known and known[0].reference is not None))
    return float(rows * sum(len(one.views) * (each + (one.support is not None)) for one in known))


def forwards_learned(learned: Sequence[Known], objective: PolicyObjective, rows: int) -> float:
    """Forwards of a step: those with a gradient, and those that an objective makes without one first."""
    twice = [objective.rehearses and not (one.fresh and objective.reads_old) for one in learned]
    return float(rows * sum(len(one.views) * (1 + again) for one, again in zip(learned, twice, strict=True)))
