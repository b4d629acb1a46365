# The decoding policies on hand-written probabilities: quotas, thresholds, ties, prefix rules.
# Entry points: the tests.
# Positions are ranked by (-confidence, index); thresholds are strict.
"""Policies as pure functions."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from hildanext.core.types import Canvas, Stats
from hildanext.decoding.policy import quota
from hildanext.registry import build

MASK = 9


def canvas(tokens: list[int], step: int = 0, given: int = 0, **more: Any) -> Canvas:
    made = torch.tensor(tokens)
    count = int((made == MASK).sum())
    uniform = torch.rand(len(tokens), generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return Canvas(made, torch.arange(len(tokens)) >= given, MASK, step, more.pop("masks", count), uniform, **more)


def stats(best: list[int], probability: list[float], **more: list[float]) -> Stats:
    rest = {name: torch.tensor(values) for name, values in more.items()}
    return Stats(torch.tensor(best), torch.tensor(probability), **rest)


def chosen(policy: dict[str, Any], probability: list[float], step: int = 0, **more: Any) -> list[int]:
    size = len(probability)
    update = build("policies", policy).step(stats([1] * size, probability, **more), canvas([MASK] * size, step))
    return [index for index in range(size) if update.unmasked[index]]


def test_quota_tables() -> None:
    assert [quota(32, 32, step) for step in range(32)] == [1] * 32
    assert [quota(5, 2, step) for step in range(2)] == [3, 2]
    assert [quota(5, 4, step) for step in range(4)] == [2, 1, 1, 1]
    for count, steps in itertools.product(range(1, 20), range(1, 20)):
        assert sum(quota(count, steps, step) for step in range(steps)) == count


def test_static_quota_takes_the_most_confident() -> None:
    assert chosen({"type": "static_quota", "steps": 2}, [0.1, 0.9, 0.2, 0.8, 0.7]) == [1, 3, 4]
    assert chosen({"type": "static_quota", "steps": 2}, [0.1, 0.9, 0.2, 0.8, 0.7], step=1) == [1, 3]


@pytest.mark.parametrize("policy", ["static_quota", "threshold_edit", "factor", "margin", "entropy_bound", "remask"])
def test_equal_confidences_are_filled_from_the_left(policy: str) -> None:
    values = [0.3] * 32
    assert chosen({"type": policy}, values, second=[0.1] * 32, entropy=[1.0] * 32) == [0]


def test_a_threshold_is_strict_and_one_means_one_token_per_step() -> None:
    section = {"type": "threshold_edit", "tau_mask": 0.5, "tau_edit": None}
    assert chosen(section, [0.5, 0.5000001, 0.2]) == [1]
    assert chosen({**section, "tau_mask": 1.0}, [1.0, 1.0, 0.2]) == [0]
    assert chosen({**section, "tau_mask": 0.0}, [0.1, 0.2, 0.3]) == [0, 1, 2]
    assert chosen({**section, "tau_mask": 1.0, "minimum_transfers": 2}, [0.1, 0.2, 0.3]) == [1, 2]


def test_edits_touch_visible_and_not_given_positions_only() -> None:
    policy = build("policies", {"type": "threshold_edit", "tau_mask": 0.9, "tau_edit": 0.0})
    update = policy.step(stats([1, 1, 1, 1], [0.5, 0.5, 0.95, 0.5]), canvas([2, 2, MASK, MASK], given=1))
    assert update.tokens.tolist() == [2, 1, 1, MASK]
    assert update.edited.tolist() == [False, True, False, False]
    assert update.unmasked.tolist() == [False, False, True, False]


def test_a_rewrite_needs_more_than_tau_edit_and_another_token() -> None:
    policy = build("policies", {"type": "threshold_edit", "tau_mask": 0.9, "tau_edit": 0.5})
    update = policy.step(stats([1, 1, 3], [0.5, 0.51, 0.99]), canvas([2, 2, 3]))
    assert update.tokens.tolist() == [2, 1, 3] and update.edited.tolist() == [False, True, False]


def test_factor_is_the_longest_prefix_and_accepts_more_with_a_larger_factor() -> None:
    assert len(chosen({"type": "factor", "factor": 1.0}, [0.817, 0.659])) == 1
    source, factors = random.Random(0), (0.25, 0.5, 1.0, 2.0, 4.0)
    policies = {factor: build("policies", {"type": "factor", "factor": factor}) for factor in factors}
    for _ in range(50):
        values = [source.random() for _ in range(6)]
        ordered, sizes = sorted(values, reverse=True), []
        for factor, policy in policies.items():
            brute = next((n for n in range(6) if (n + 2) * (1 - ordered[n]) >= factor), 6)
            sizes.append(int(policy.step(stats([1] * 6, values), canvas([MASK] * 6)).unmasked.sum()))
            assert sizes[-1] == max(1, brute)
        assert sizes == sorted(sizes)


def test_entropy_bound_takes_the_lowest_entropies_within_the_bound() -> None:
    entropy = [0.3, 0.1, 0.9, 0.15]
    section = {"type": "entropy_bound", "gamma": 0.26}
    assert chosen(section, [0.5] * 4, entropy=entropy) == [1, 3]
    assert chosen({**section, "gamma": 0.0}, [0.5] * 4, entropy=entropy) == [1]
    assert chosen({**section, "gamma": 9.0}, [0.5] * 4, entropy=entropy) == [0, 1, 2, 3]


def test_margin_ranks_by_the_distance_to_the_runner_up() -> None:
    section = {"type": "margin", "steps": 3}
    assert chosen(section, [0.6, 0.5, 0.4], second=[0.39, 0.1, 0.05]) == [1]


def test_hierarchy_takes_one_per_run_the_confident_ones_and_the_best() -> None:
    policy = build("policies", {"type": "hierarchy", "tau_mask": 0.9, "tau_low": 0.4})
    tokens = [MASK, MASK, 1, MASK, MASK, MASK, 1, MASK]
    update = policy.step(stats([1] * 8, [0.5, 0.6, 0.0, 0.3, 0.95, 0.92, 0.0, 0.2]), canvas(tokens))
    assert update.unmasked.nonzero().flatten().tolist() == [1, 4, 5]
    source = random.Random(1)
    for _ in range(50):
        values = [source.random() for _ in tokens]
        count = int(policy.step(stats([1] * 8, values), canvas(tokens)).unmasked.sum())
        assert 1 <= count <= 3 + sum(value > 0.9 for value in values) + 1


def test_credit_without_weight_is_plain_and_with_it_prefers_what_was_predicted_before() -> None:
    plain = build("policies", {"type": "credit", "alpha": 0.0})
    history = ((torch.tensor([4, 5]), torch.tensor([0.5, 0.5])), (torch.tensor([4, 6]), torch.tensor([1.0, 0.5])))
    assert plain.bias(canvas([MASK, MASK], history=history)) is None
    bias = build("policies", {"type": "credit", "alpha": 2.0, "decay": 0.5, "gamma": 1.0}).bias(
        canvas([MASK, MASK], history=history)
    )
    added = torch.zeros(2, 10).scatter_add_(1, bias.tokens, bias.amounts)
    wanted = torch.zeros(2, 10)
    wanted[0, 4] = 2 * torch.log1p(torch.tensor(1.25))
    wanted[1, 5], wanted[1, 6] = 2 * torch.log1p(torch.tensor(0.25)), 2 * torch.log1p(torch.tensor(0.5))
    torch.testing.assert_close(added, wanted)


def test_random_order_draws_every_position_equally_often() -> None:
    policy = build("policies", {"type": "random", "steps": 4})
    counts = torch.zeros(4)
    for step in range(0, 4000, 4):
        counts += policy.step(stats([1] * 4, [0.9, 0.1, 0.1, 0.1]), canvas([MASK] * 4, step)).unmasked
    assert counts.sum() == 1000 and (counts - 250).abs().max() < 4 * 250**0.5


def test_random_topk_without_temperature_is_the_static_quota() -> None:
    values = [0.1, 0.9, 0.2, 0.8, 0.7]
    section = {"type": "random_topk", "steps": 2}
    assert chosen({**section, "position_temperature": 0.0}, values) == [1, 3, 4]
    drawn = {tuple(chosen({**section, "position_temperature": 1.0}, values, step=step)) for step in range(0, 40, 2)}
    assert len(drawn) > 3


def test_remask_takes_back_the_least_confident_but_fewer_than_it_fills() -> None:
    policy = build("policies", {"type": "remask", "target_ratio": 0.5, "minimum_ratio": 0.5, "stride": 1})
    made = canvas([1, 2, 3, 4, MASK, MASK, MASK, MASK], step=1, given=1, masks=7)
    update = policy.step(stats([7, 2, 8, 4, 1, 1, 1, 1], [0.9, 0.6, 0.9, 0.2, 0.1, 0.2, 0.3, 0.4]), made)
    assert update.remasked is not None and update.remasked.nonzero().flatten().tolist() == [2, 3]
    assert int(update.unmasked.sum()) == 3
    assert update.tokens[0] == 1
