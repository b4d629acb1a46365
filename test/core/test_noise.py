# The forward process: schedules, exact counts, spans, replaced tokens, units. Mask rates: test_mask_rates.py.
# Entry points: pytest.
# Statistical checks use fixed seeds; a check is a function that a deliberately wrong variant is shown to fail.
"""Tests of core/noise.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from core.checks import assert_mean_is
from core.stand_ins import UniformModel, batch_of
from pydantic import ValidationError
from scipy import stats

from hildanext.config.noise import NoiseConfig
from hildanext.core import noise
from hildanext.core.noise import Corruption, allowed_tokens, corrupt, plant, unit_sizes, units
from hildanext.core.schedules import SCHEDULES
from hildanext.core.types import Batch

MODEL = UniformModel(50)
SCHEDULE_NAMES = sorted(SCHEDULES)


def many(config: NoiseConfig, block: int = 8, rows: int = 256, length: int = 32, seed: int = 0, model=MODEL):
    tokens = torch.randint(0, 49, (rows, length), generator=torch.Generator().manual_seed(99))
    batch = batch_of(tokens)
    return batch, corrupt(config, model, batch, block, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_a_schedule_runs_from_zero_to_one_and_its_slope_and_inverse_are_its_own(schedule):
    curve = SCHEDULES[schedule]
    time = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    ends = curve.rate(torch.tensor([0.0, 1.0], dtype=torch.float64), 3.0)
    assert torch.allclose(ends, torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-12)
    numeric = (curve.rate(time + 1e-6, 3.0) - curve.rate(time - 1e-6, 3.0)) / 2e-6
    assert torch.allclose(curve.slope(time, 3.0), numeric, rtol=1e-6)
    assert torch.allclose(curve.time(curve.rate(time, 3.0), 3.0), time, atol=1e-9)


@pytest.mark.parametrize("span", [0.0, 1.0])
def test_exact_counts_are_uniform_over_the_block_and_weigh_size_over_count(span):
    _, (view,) = many(NoiseConfig(draw="count", span=span), rows=1000)
    counts = view.m2t.view(1000, 4, 8).sum(-1)
    observed = torch.bincount(counts.flatten(), minlength=9)[1:]
    assert int(counts.min()) >= 1
    assert stats.chisquare(observed.numpy()).pvalue > 1e-3
    weights = (view.m2t * view.elbo).view(1000, 4, 8).sum(-1)
    assert torch.allclose(weights, torch.full_like(weights, 8.0))


def test_a_span_is_one_cyclic_run_and_leaves_every_place_equally_likely():
    _, (view,) = many(NoiseConfig(span=1.0), rows=3000)
    blocks = view.m2t.view(-1, 8)
    starts = (blocks & ~blocks.roll(1, dims=1)).sum(1)
    assert int(starts.max()) <= 1
    error = float(blocks.double().std(0).max()) / math.sqrt(len(blocks))
    assert float((blocks.double().mean(0) - view.rate.mean()).abs().max()) <= 5 * error
    _, (scattered,) = many(NoiseConfig(), rows=300)
    loose = scattered.m2t.view(-1, 8)
    assert int((loose & ~loose.roll(1, dims=1)).sum(1).max()) > 1


def assert_changed_share(may_draw_original: bool, expected: float) -> None:
    config = NoiseConfig(replace=0.3, forbidden=(3, 4), vocabulary=13, may_draw_original=may_draw_original)
    tokens = torch.randint(5, 13, (3000, 32), generator=torch.Generator().manual_seed(4))
    batch, model = batch_of(tokens), UniformModel(50, mask_id=0)
    (view,) = corrupt(config, model, batch, 8, torch.Generator().manual_seed(5))
    visible = view.maskable & ~view.m2t
    assert_mean_is((view.tokens != tokens)[visible].double(), expected)


def assert_drawn_uniformly() -> None:
    config = NoiseConfig(replace=1.0, forbidden=(3, 4), vocabulary=47)
    _, (view,) = many(config, rows=500, model=UniformModel(50, mask_id=0))
    drawn, allowed = view.tokens[view.t2t], [token for token in range(47) if token not in (0, 3, 4)]
    assert set(drawn.tolist()) <= set(allowed)
    assert stats.chisquare(torch.bincount(drawn, minlength=50)[allowed].numpy()).pvalue > 1e-3


def assert_divides(view: Corruption, batch: Batch, clean: torch.Tensor) -> None:
    """M2T, T2T and KEEP sets divide the learnable positions; the clean half and all else stand."""
    total = view.m2t.long() + view.t2t.long() + view.keep.long()
    assert torch.equal(total, batch.learn.long())
    assert torch.equal(view.tokens == MODEL.mask_id, view.m2t)
    stays = view.keep | ~batch.learn
    assert torch.equal(view.tokens[stays], clean[stays])
    assert torch.equal(batch.tokens, clean)


def edited_view() -> tuple[Corruption, Batch, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    clean, learn = torch.randint(0, 49, (40, 32), generator=rng), torch.rand(40, 32, generator=rng) < 0.6
    batch = batch_of(clean.clone(), learn)
    (view,) = corrupt(NoiseConfig(replace=0.5), MODEL, batch, 8, torch.Generator().manual_seed(0))
    return view, batch, clean


@pytest.mark.parametrize(("may", "expected"), [(True, 0.3 * (1 - 1 / 10)), (False, 0.3)])
def test_the_changed_share_of_visible_tokens_is_the_ratio_less_the_chance_of_the_original(may, expected):
    assert_changed_share(may, expected)


def test_random_tokens_are_uniform_over_the_allowed_vocabulary():
    assert_drawn_uniformly()


def test_masked_replaced_and_kept_are_disjoint_and_cover_what_may_change():
    assert_divides(*edited_view())


def _draws(change):
    right = noise._random_tokens
    return lambda allowed, original, uniform, may: right(*change(allowed, original, uniform), may)


WRONG_DRAWS = {
    "skewed": lambda a, o, u: (a, o, u**1.1),
    "forbidden": lambda a, o, u: (torch.arange(47), o, u),
    "last token never": lambda a, o, u: (a[:-1], o, u),
}


@pytest.mark.parametrize("fault", WRONG_DRAWS)
def test_another_distribution_fails_the_chi_square_or_the_vocabulary(fault, monkeypatch):
    monkeypatch.setattr(noise, "_random_tokens", _draws(WRONG_DRAWS[fault]))
    with pytest.raises(AssertionError):
        assert_drawn_uniformly()


@pytest.mark.parametrize(("may", "expected"), [(True, 0.3), (False, 0.27)])
def test_another_share_fails_the_changed_share(may, expected):
    with pytest.raises(AssertionError):
        assert_changed_share(may, expected)


def test_a_draw_that_keeps_one_original_in_ten_fails_the_changed_share(monkeypatch):
    right = noise._random_tokens
    monkeypatch.setattr(noise, "_random_tokens", lambda a, o, u, may: torch.where(u < 0.1, o, right(a, o, u, may)))
    with pytest.raises(AssertionError):
        assert_changed_share(False, 0.3)


@pytest.mark.parametrize("fault", ["overlap", "gap", "mask outside", "kept changed", "clean half changed"])
def test_sets_that_overlap_or_leave_a_gap_and_stray_writes_fail_the_division(fault):
    view, batch, clean = edited_view()
    if fault == "overlap":
        view = replace(view, t2t=view.t2t | view.m2t)
    if fault == "gap":
        view = replace(view, maskable=view.maskable & (torch.arange(32) > 3))
    if fault == "mask outside":
        view = replace(view, tokens=torch.where(batch.learn, view.tokens, MODEL.mask_id))
    if fault == "kept changed":
        view = replace(view, tokens=torch.where(view.keep, (view.tokens + 1) % 49, view.tokens))
    if fault == "clean half changed":
        batch.tokens.copy_(view.tokens)
    with pytest.raises(AssertionError):
        assert_divides(view, batch, clean)


def test_random_replace_noise_writes_tokens_instead_of_masks():
    batch, (view,) = many(NoiseConfig(type="random_replace"))
    _, (masks,) = many(NoiseConfig(replace=0.0))
    assert not bool(view.m2t.any()) and not bool((view.tokens == MODEL.mask_id).any())
    assert torch.equal(view.t2t, masks.m2t)


def test_prompt_padding_and_masks_of_the_text_never_change():
    tokens = torch.randint(0, 49, (30, 32), generator=torch.Generator().manual_seed(3))
    tokens[:, 20] = MODEL.mask_id
    learn = torch.zeros(30, 32, dtype=torch.bool)
    learn[:, 10:24] = True
    for seed in range(20):
        batch = batch_of(tokens, learn)
        (view,) = corrupt(NoiseConfig(replace=0.5), MODEL, batch, 8, torch.Generator().manual_seed(seed))
        assert torch.equal(view.tokens[~learn], tokens[~learn])
        assert not bool(view.maskable[:, 20].any())


def test_documents_cut_blocks_into_slots():
    docs = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]])
    batch = batch_of(torch.zeros(1, 8, dtype=torch.long), docs=docs)
    assert units("block", batch, 4).tolist() == [[0, 0, 0, 1, 2, 2, 2, 3]]
    assert units("block", batch, 2, "per_document").tolist() == [[0, 0, 1, 2, 2, 3, 3, 4]]
    assert units("document", batch, 4).tolist() == units("block", batch, 0).tolist() == [[0, 0, 0, 1, 1, 1, 1, 2]]
    assert units("sequence", batch, 4).tolist() == [[0] * 8]
    assert unit_sizes(units("document", batch, 4), batch.learn).tolist() == [[3, 4, 1, 0, 0, 0, 0, 0]]


def test_planted_errors_are_never_the_original_and_leave_no_mask():
    tokens = torch.randint(0, 49, (200, 32), generator=torch.Generator().manual_seed(3))
    changed, wrong, _ = plant(NoiseConfig(replace=0.2), MODEL, batch_of(tokens), torch.Generator().manual_seed(0))
    assert torch.equal(changed != tokens, wrong)
    assert not bool((changed == MODEL.mask_id).any())
    assert_mean_is(wrong.double().flatten(), 0.2)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="low"):
        NoiseConfig(low=0.8, high=0.3)
    with pytest.raises(ValidationError, match="count"):
        NoiseConfig(draw="count", schedule="cosine")
    with pytest.raises(ValueError, match="no token is left"):
        allowed_tokens(2, (0, 1))
