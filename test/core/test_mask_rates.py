# Mask rates and mask sets against their distributions: rates, weights, bands, strata, complementary pairs.
# Entry points: pytest.
# The schedules are written out again here; scipy integrates and tests them. Every check is shown to fail on a fault
# that is planted in core/noise.py.
"""Tests of core/noise.py: which positions are masked, and with what weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from core.checks import assert_drawn_with, assert_mean_is, rng
from core.stand_ins import UniformModel, batch_of
from scipy import integrate, stats

from hildanext.config.noise import NoiseConfig
from hildanext.core import noise
from hildanext.core.noise import Corruption

MODEL = UniformModel(50)
LITERAL: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cosine": lambda t: 1 - (1 - math.cos(math.pi / 2 * (1 - t))),
    "power": lambda t: t * t,
    "sigmoid": lambda t: (math.tanh(t - 0.5) / math.tanh(0.5) + 1) / 2,
}
BANDS = [(0.0, 1.0), (0.3, 0.8)]
KINDS = [("block", name) for name in LITERAL] + [("sequence", "linear"), ("document", "cosine")]
CAPPED, RATES, DRAW, CORRUPT, UNIFORMS = (
    noise._capped, noise._rates, noise._draw, noise.corrupt, noise.row_uniforms,
)  # fmt: skip


def views_of(config: NoiseConfig, rows: int, length: int = 32, seed: int = 0) -> tuple[Corruption, ...]:
    tokens = torch.randint(0, 49, (rows, length), generator=rng(99))
    docs = (torch.arange(length) >= 3 * length // 4).long().expand(rows, length).clone()
    return noise.corrupt(config, MODEL, batch_of(tokens, docs=docs), 8, rng(seed))


def times(config: NoiseConfig) -> tuple[float, float]:
    """Ends of the time interval whose rates are the band."""
    grid = np.linspace(0, 1, 200_001)
    rates = np.array([LITERAL[config.schedule](t) for t in grid])
    first, last = np.interp([max(config.low, config.minimum), config.high], rates, grid)
    return float(first), float(last)


def assert_weights_have_mean_one(config: NoiseConfig, rows: int, length: int = 32) -> None:
    for view in views_of(config, rows, length):
        assert_mean_is((view.m2t * view.elbo).mean(1), 1.0)


@pytest.mark.parametrize(("unit", "schedule"), KINDS)
@pytest.mark.parametrize("band", BANDS)
def test_the_elbo_weight_of_a_masked_token_has_mean_one(unit, schedule, band):
    assert_weights_have_mean_one(NoiseConfig(unit=unit, schedule=schedule, low=band[0], high=band[1]), 2000)


def test_the_weights_of_a_million_draws_have_mean_one():
    assert_weights_have_mean_one(NoiseConfig(), 8000, 128)
    assert_weights_have_mean_one(NoiseConfig(schedule="cosine", low=0.1, high=0.9, complementary=True), 4000, 128)


def _band_forgotten(config, *rest):
    rate, scale = RATES(config, *rest)
    return rate, scale * (config.high - config.low)


def _weight_of_first(config, model, batch, block, generator):
    first, second = CORRUPT(config, model, batch, block, generator)
    return first, replace(second, elbo=first.elbo)


WRONG_WEIGHTS = {
    "one instead of 1/t": ({}, "_capped", lambda weight, config: torch.ones_like(weight)),
    "width of the band lost": ({"low": 0.3, "high": 0.8}, "_rates", _band_forgotten),
    "that of the next block": ({}, "_capped", lambda weight, config: weight.roll(8, dims=1)),
    "1/p in the complement": ({"low": 0.1, "high": 0.9, "complementary": True}, "corrupt", _weight_of_first),
}


@pytest.mark.parametrize("fault", WRONG_WEIGHTS)
def test_another_weight_has_another_mean(fault, monkeypatch):
    fields, name, wrong = WRONG_WEIGHTS[fault]
    monkeypatch.setattr(noise, name, wrong)
    with pytest.raises(AssertionError):
        assert_weights_have_mean_one(NoiseConfig(**fields), 2000)


def test_a_million_draws_tell_masks_drawn_at_mdlms_scaled_rate_from_ours(monkeypatch):
    config = NoiseConfig(low=0.98)
    assert_weights_have_mean_one(config, 8000, 128)
    monkeypatch.setattr(noise, "_draw", lambda c, unit, can, rate, u: DRAW(c, unit, can, 0.999 * rate, u))
    (view,) = views_of(config, 8000, 128)
    found = (view.m2t * view.elbo).mean(1)
    assert_mean_is(found, 0.999)
    with pytest.raises(AssertionError):
        assert_mean_is(found, 1.0)


def assert_masks_follow_the_rates(config: NoiseConfig) -> None:
    """Each unit's rate has the distribution asked for, each position's share of masks is its mean, and given the rates
    the masks are independent draws."""
    (view,) = views_of(config, 2000)
    first, last = times(config)
    grid = np.linspace(first, last, 20_001)
    rates = np.array([LITERAL[config.schedule](t) for t in grid])
    shares = (grid - first) / (last - first)
    for place in range(0, 32, 8):
        assert stats.kstest(view.rate[:, place].numpy(), lambda p: np.interp(p, rates, shares)).pvalue > 1e-3
    mean = integrate.quad(LITERAL[config.schedule], first, last)[0] / (last - first)
    for place in range(32):
        assert_mean_is(view.m2t[:, place], mean)
    assert_drawn_with(view.m2t, view.rate)


@pytest.mark.parametrize(("unit", "schedule"), KINDS)
@pytest.mark.parametrize("band", BANDS)
def test_rates_have_their_distribution_at_every_place_and_masks_follow_them(unit, schedule, band):
    assert_masks_follow_the_rates(NoiseConfig(unit=unit, schedule=schedule, low=band[0], high=band[1]))


def _strata_in_order(batch, generator, count):
    drawn = UNIFORMS(batch, generator, count).clone()
    drawn[0] = torch.arange(drawn.shape[2]) / drawn.shape[2]
    drawn[1] /= 5
    return drawn


WRONG_RATES = {
    "strata in the order of blocks": ("row_uniforms", _strata_in_order),
    "band ignored": ("_rates", lambda c, *a: RATES(c.model_copy(update={"low": 0.0, "high": 1.0}), *a)),
    "other schedule": ("_rates", lambda c, *a: RATES(c.model_copy(update={"schedule": "power"}), *a)),
    "drawn at the next block's rate": (
        "_draw", lambda c, unit, can, rate, u: DRAW(c, unit, can, rate.roll(8, dims=1), u),
    ),
    "one too few": ("_draw", lambda c, unit, can, rate, u: DRAW(c, unit, can, rate - 1 / 32, u)),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG_RATES)
def test_wrong_rates_or_masks_at_other_rates_fail(fault, monkeypatch):
    monkeypatch.setattr(noise, *WRONG_RATES[fault])
    with pytest.raises(AssertionError):
        assert_masks_follow_the_rates(NoiseConfig(low=0.3, high=0.8))


def assert_strata_in_random_order() -> None:
    """Four units of a row: one rate per quarter of the circle, in each of the 3! cyclic orders equally often."""
    (view,) = views_of(NoiseConfig(), 3000)
    time = (view.rate[:, ::8] - 0.001) / 0.999
    quarters = ((time - time[:, :1]) * 4) % 4
    steps = quarters.round() % 4
    assert float((quarters - quarters.round()).abs().max()) < 1e-6
    orders = [tuple(order) for order in steps[:, 1:].long().tolist()]
    counts = [orders.count(order) for order in itertools.permutations((1, 2, 3))]
    assert sum(counts) == 3000 and stats.chisquare(counts).pvalue > 1e-3


def test_the_rates_of_a_row_are_one_per_stratum_in_random_order():
    assert_strata_in_random_order()


def _unpermuted(batch, generator, count):
    drawn = UNIFORMS(batch, generator, count).clone()
    drawn[0] = torch.arange(drawn.shape[2]) / drawn.shape[2]
    return drawn


def _unstratified(config, unit, sizes, uniforms):
    rate = uniforms[1] * 0.999 + 0.001
    return rate.gather(1, unit), torch.ones_like(rate)


@pytest.mark.parametrize(("name", "fault"), [("row_uniforms", _unpermuted), ("_rates", _unstratified)])
def test_strata_in_a_fixed_order_and_independent_rates_fail_the_order(name, fault, monkeypatch):
    monkeypatch.setattr(noise, name, fault)
    with pytest.raises(AssertionError):
        assert_strata_in_random_order()


def assert_band_and_mirror(low: float, high: float) -> None:
    """Rates fill [low, high] uniformly, those of the complement [1 - high, 1 - low], and masks are drawn with them."""
    views = views_of(NoiseConfig(low=low, high=high, complementary=True), 1500)
    for view, (first, last) in zip(views, ((low, high), (1 - high, 1 - low)), strict=True):
        assert float(view.rate.min()) >= first - 1e-12 and float(view.rate.max()) <= last + 1e-12
        assert stats.kstest(view.rate[:, 0].numpy(), "uniform", args=(first, last - first)).pvalue > 1e-3
        assert_drawn_with(view.m2t, view.rate)


@pytest.mark.parametrize("band", [(0.3, 0.8), (0.05, 0.4)])
def test_rates_fill_the_band_and_those_of_the_complement_its_mirror(band):
    assert_band_and_mirror(*band)


def _not_mirrored(config, model, batch, block, generator):
    first, second = CORRUPT(config, model, batch, block, generator)
    return first, replace(second, rate=first.rate)


WRONG_BANDS = {
    "not mirrored": ("corrupt", _not_mirrored),
    "low ignored": ("_rates", lambda c, *a: RATES(c.model_copy(update={"low": 0.0}), *a)),
    "high ignored": ("_rates", lambda c, *a: RATES(c.model_copy(update={"high": 1.0}), *a)),
    "middle only": ("_rates", lambda c, *a: RATES(c.model_copy(update={"low": 0.5, "high": 0.6}), *a)),
    "masks outside": ("_draw", lambda c, unit, can, rate, u: DRAW(c, unit, can, rate**2, u)),
}


@pytest.mark.parametrize("fault", WRONG_BANDS)
def test_rates_outside_the_band_fail_it(fault, monkeypatch):
    monkeypatch.setattr(noise, *WRONG_BANDS[fault])
    with pytest.raises(AssertionError):
        assert_band_and_mirror(0.3, 0.8)


def assert_pair_divides_the_maskable() -> None:
    tokens, learn = torch.randint(0, 49, (40, 32), generator=rng(1)), torch.rand(40, 32, generator=rng(2)) < 0.7
    batch = batch_of(tokens.clone(), learn)
    first, second = noise.corrupt(NoiseConfig(complementary=True, replace=0.2), MODEL, batch, 8, rng())
    assert torch.equal(first.m2t.long() + second.m2t.long(), learn.long())
    for view in (first, second):
        assert torch.equal(view.tokens == MODEL.mask_id, view.m2t)
        assert torch.equal(view.tokens[~learn], tokens[~learn])
    assert torch.equal(batch.tokens, tokens)


def test_complementary_masks_are_disjoint_and_their_union_is_what_may_be_masked():
    assert_pair_divides_the_maskable()


def _drawn_apart(config, model, batch, block, generator):
    one = config.model_copy(update={"complementary": False})
    return CORRUPT(one, model, batch, block, generator) + CORRUPT(one, model, batch, block, generator)


def _prompt_too(config, model, batch, block, generator):
    first, second = CORRUPT(config, model, batch, block, generator)
    every = ~first.m2t
    return first, replace(second, m2t=every, tokens=batch.tokens.masked_fill(every, model.mask_id))


def _twice_the_same(config, model, batch, block, generator):
    first, _ = CORRUPT(config, model, batch, block, generator)
    return first, first


@pytest.mark.parametrize("fault", [_drawn_apart, _prompt_too, _twice_the_same])
def test_views_that_are_not_complements_fail_the_division(fault, monkeypatch):
    monkeypatch.setattr(noise, "corrupt", fault)
    with pytest.raises(AssertionError):
        assert_pair_divides_the_maskable()


def assert_cap_bounds(limit: float) -> None:
    (view,) = views_of(NoiseConfig(cap=limit), 2000)
    assert torch.equal(view.elbo, (1 / view.rate).clamp(max=limit))


def test_the_cap_bounds_the_weight_and_loses_mean_one(monkeypatch):
    assert_cap_bounds(2.0)
    with pytest.raises(AssertionError):
        assert_weights_have_mean_one(NoiseConfig(cap=2.0), 2000)
    monkeypatch.setattr(noise, "_capped", lambda weight, config: weight)
    with pytest.raises(AssertionError):
        assert_cap_bounds(2.0)
