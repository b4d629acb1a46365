# Four ways to the same bound: enumeration of mask sets, average over orders, Bernoulli masks, exact counts.
# Entry points: pytest.
# The average over orders is worked out by hand (orders.py) and is the oracle of the three others; each of them is shown
# to fail on faults planted in core/likelihood.py or core/noise.py.
"""Tests of the estimates of the block ELBO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from core.checks import assert_mean_is, rng
from core.orders import order_average, order_average_by_recursion
from core.stand_ins import TableModel, batch_of
from torch import Tensor

from hildanext.config.noise import NoiseConfig
from hildanext.core import likelihood, noise
from hildanext.core.likelihood import block_elbo, exact_block_elbo, sampled_block_elbo, token_nll
from hildanext.core.noise import Corruption

PATTERN, RATES, CORRUPT, DRAW, RANK, WEIGHTED = (
    likelihood._pattern_weight, noise._rates, noise.corrupt, noise._draw,
    likelihood.rank_in_unit, likelihood._weighted_nats,
)  # fmt: skip


def some_rows(tokens: int, rows: int, length: int = 8) -> Tensor:
    return torch.randint(0, tokens, (rows, length), generator=rng())


def assert_enumeration_is_the_order_average(block: int) -> None:
    model = TableModel(3, block)
    for row in some_rows(3, 3):
        found = block_elbo(model, batch_of(row[None]), block, rng())
        assert abs(found.nats - order_average(model, row.tolist())) < 1e-10
        assert (found.tokens, found.standard_error) == (7, 0.0)


def assert_enumeration_of_eight_is_the_recursion() -> None:
    model, row = TableModel(2, 8, prefixes=1), some_rows(2, 1)
    wanted = order_average_by_recursion(model, row[0].tolist(), frozenset(range(1, 8)), {})
    assert abs(block_elbo(model, batch_of(row), 8, rng()).nats - wanted) < 1e-10


@pytest.mark.parametrize("block", [1, 2, 4])
def test_enumeration_equals_the_average_over_all_orders(block):
    assert_enumeration_is_the_order_average(block)


def test_enumeration_of_a_block_of_eight_equals_the_recursion_over_orders():
    assert_enumeration_of_eight_is_the_recursion()


WRONG_PATTERNS = {
    "sets of three left out": lambda pattern, size: PATTERN(pattern, size) * (pattern.bit_count() < 3),
    "sets not orders": lambda pattern, size: torch.ones_like(size.double()) / (2 ** size.double() - 1),
    "size over count": lambda pattern, size: PATTERN(pattern, size) * size / pattern.bit_count(),
    "place counted from one": lambda pattern, size: PATTERN(pattern << 1, size + 1),
    "by the block, not its scored tokens": lambda pattern, size: PATTERN(pattern, size * 0 + 4),
    "a part in a million": lambda pattern, size: PATTERN(pattern, size) * (1 + 1e-6),
}


@pytest.mark.parametrize("fault", WRONG_PATTERNS)
def test_another_weight_of_mask_sets_fails_the_average_over_orders(fault, monkeypatch):
    monkeypatch.setattr(likelihood, "_pattern_weight", WRONG_PATTERNS[fault])
    with pytest.raises(AssertionError):
        assert_enumeration_is_the_order_average(4)
    with pytest.raises(AssertionError):
        assert_enumeration_of_eight_is_the_recursion()


def assert_counts_estimate_the_bound(block: int) -> None:
    model, rows = TableModel(3, block), some_rows(3, 40)
    wanted = sum(order_average(model, row.tolist()) for row in rows)
    found = sampled_block_elbo(model, batch_of(rows), block, rng(), 300)
    assert found.tokens == 40 * 7
    assert abs(found.nats - wanted) <= 4 * found.standard_error <= 0.05 * wanted


@pytest.mark.parametrize("block", [2, 4])
def test_exact_counts_estimate_the_bound_within_four_standard_errors(block):
    assert_counts_estimate_the_bound(block)


WRONG_COUNTS = {
    "weight one": ("_weighted_nats", lambda m, b, n, masked, weight: WEIGHTED(m, b, n, masked, weight**0)),
    "one count too many": ("_weighted_nats", lambda m, b, n, masked, weight: WEIGHTED(m, b, n, masked, weight * 0.9)),
    "always the first places": ("rank_in_unit", lambda unit, can, uniform: RANK(unit, can, uniform.cumsum(1) / 99)),
    "one more masked than weighed": ("rank_in_unit", lambda unit, can, uniform: RANK(unit, can, uniform) - 1),
}


@pytest.mark.parametrize("fault", WRONG_COUNTS)
def test_wrong_counts_places_or_weights_miss_the_bound(fault, monkeypatch):
    monkeypatch.setattr(likelihood, *WRONG_COUNTS[fault])
    with pytest.raises(AssertionError):
        assert_counts_estimate_the_bound(4)


def assert_bernoulli_masks_estimate_the_bound(config: NoiseConfig, block: int = 4, copies: int = 6000) -> None:
    """Each copy's ELBO-weighted nll, mean over its views."""
    model, row = TableModel(3, block), some_rows(3, 1)
    learn = torch.ones(copies, 8, dtype=torch.bool)
    learn[:, 0] = False
    batch = batch_of(row.expand(copies, 8), learn)
    views = noise.corrupt(config, model, batch, block, rng())
    sums = torch.stack([_weighted_sums(model, view, block, row) for view in views]).mean(0)
    assert_mean_is(sums, order_average(model, row[0].tolist()))


def _weighted_sums(model: TableModel, view: Corruption, block: int, row: Tensor) -> Tensor:
    copies = len(view.tokens)
    batch = batch_of(row.expand(copies, 8), view.maskable)
    with torch.no_grad():
        nll = token_nll(model, view.tokens, batch, block, view.m2t).nll
    weighted = torch.zeros(view.m2t.shape, dtype=torch.float64).masked_scatter(view.m2t, nll)
    return (weighted * view.elbo).sum(1)


def settings(**fields: object) -> NoiseConfig:
    return NoiseConfig(**{"replace": 0.0, "minimum": 1e-6, **fields})


EVERY_ELBO = [
    {}, {"schedule": "cosine", "unit": "sequence"}, {"schedule": "power"}, {"schedule": "sigmoid", "unit": "document"},
    {"complementary": True}, {"complementary": True, "schedule": "cosine"}, {"draw": "count"},
]  # fmt: skip


@pytest.mark.parametrize("fields", EVERY_ELBO, ids=lambda fields: "-".join(map(str, fields.values())) or "plain")
def test_masks_of_every_kind_weighted_as_an_elbo_estimate_the_same_bound(fields):
    assert_bernoulli_masks_estimate_the_bound(settings(**fields))


def _reweighted(change: Callable[[Corruption], Tensor], which: int = 0) -> Callable[..., tuple[Corruption, ...]]:
    return lambda *given: tuple(
        replace(view, elbo=change(view)) if place == which else view for place, view in enumerate(CORRUPT(*given))
    )


WRONG_VIEWS = {
    "one instead of 1/t": ({}, "corrupt", _reweighted(lambda view: view.elbo**0)),
    "1/t of another block": ({}, "corrupt", _reweighted(lambda view: view.elbo.roll(4, dims=1))),
    "half the complement": ({"complementary": True}, "corrupt", _reweighted(lambda view: view.elbo / 2, 1)),
    "no slope of the schedule": ({"schedule": "cosine"}, "_rates", lambda *a: (RATES(*a)[0], RATES(*a)[1] ** 0)),
    "masks twice as likely": ({}, "_draw", lambda c, s, can, rate, u: DRAW(c, s, can, 2 * rate, u)),
    "1/p for a count": ({"draw": "count"}, "corrupt", _reweighted(lambda view: 1 / view.rate.clamp(min=1 / 4))),
}


@pytest.mark.parametrize("fault", WRONG_VIEWS)
def test_other_weights_or_masks_miss_the_bound(fault, monkeypatch):
    fields, name, wrong = WRONG_VIEWS[fault]
    monkeypatch.setattr(noise, name, wrong)
    with pytest.raises(AssertionError):
        assert_bernoulli_masks_estimate_the_bound(settings(**fields))


def assert_block_one_is_exact_and_has_the_mean() -> None:
    """The bound at block 1, by hand: each token given the earlier ones and one mask. Random rates have its mean."""
    model, row = TableModel(3, 1), some_rows(3, 1)
    tokens = row[0].tolist()
    wanted = -sum(model.log_probability(tokens[:i], [model.mask_id], 0, tokens[i]) for i in range(1, 8))
    assert abs(exact_block_elbo(model, batch_of(row), 1).nats - wanted) < 1e-9
    assert abs(order_average(model, tokens) - wanted) < 1e-12
    assert_bernoulli_masks_estimate_the_bound(NoiseConfig(replace=0.0), 1, 4000)


def test_block_one_with_random_rates_has_the_exact_mean():
    assert_block_one_is_exact_and_has_the_mean()


WRONG_ONES: dict[str, Callable[[Corruption], Tensor]] = {
    "none": lambda view: torch.ones_like(view.elbo),
    "twice": lambda view: 2 * view.elbo,
    "of the neighbour": lambda view: view.elbo.roll(1, dims=1),
    "of the complement": lambda view: 1 / (1 - view.rate).clamp(min=1e-3),
}


@pytest.mark.parametrize("fault", WRONG_ONES)
def test_another_weight_than_one_over_the_rate_fails_the_mean_of_block_one(fault, monkeypatch):
    monkeypatch.setattr(noise, "corrupt", _reweighted(WRONG_ONES[fault]))
    with pytest.raises(AssertionError):
        assert_block_one_is_exact_and_has_the_mean()
