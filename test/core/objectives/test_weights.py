# Fields that change what a masked position weighs, or how likely it is masked, against their formulas in loops.
# Entry points: pytest.
# The path term: p detached; CART: visible tokens by distance; tilt: rates by place with the mean kept.
"""Tests of the fields path, weighting=cart and noise.tilt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from core.recorder import build, example, rng
from core.stand_ins import LayerModel
from torch import Tensor

from hildanext.config.noise import NoiseConfig
from hildanext.core import noise
from hildanext.core.noise import cart_weights, corrupt, unit_sizes, units
from hildanext.core.objectives import mask_and_edit
from hildanext.core.types import Batch

PLAIN: dict[str, Any] = {"noise": {"replace": 0.0}, "keep_weight": 0.0, "weighting": "uniform"}


def test_the_path_term_is_cross_entropy_by_its_own_probability_without_a_slope_through_it() -> None:
    model, batch = LayerModel(seed=1), example()
    (view,) = build("mask_and_edit", **PLAIN).views(model, batch, 4, rng())
    logits = (model.noisy_features(view.tokens, batch, 4, view.m2t) @ model.head().T)[:, : model.mask_id]
    nll = -logits.log_softmax(-1).gather(1, batch.tokens[view.m2t][:, None])[:, 0]
    wanted = ((1 + 2.0 * (-nll).exp().detach()) * nll).sum()
    report = build("mask_and_edit", **PLAIN, path=2.0).loss(model, batch, 4, rng())
    weights = list(model.weights.values())
    assert float(report.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    slopes = torch.autograd.grad(report.total, weights)
    for one, other in zip(slopes, torch.autograd.grad(wanted, weights, retain_graph=True), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    through = torch.autograd.grad(((1 + 2.0 * (-nll).exp()) * nll).sum(), weights)
    assert any(not torch.allclose(one, other, rtol=1e-2) for one, other in zip(slopes, through, strict=True))


def cart_by_hand(masked: Tensor, batch: Batch, block: int, decay: float) -> Tensor:
    made = torch.zeros(masked.shape, dtype=torch.float64)
    for row in range(len(masked)):
        for i in range(masked.shape[1]):
            for j in range(masked.shape[1]):
                same = batch.docs[row, i] == batch.docs[row, j]
                known = j // block < i // block or (j // block == i // block and not masked[row, j])
                if i != j and same and known:
                    made[row, i] += 0.5 * decay * (1 - decay) ** (abs(i - j) - 1)
    return made


def assert_cart(block: int = 4) -> None:
    model, batch = LayerModel(seed=1), example()
    (view,) = build("mask_and_edit", **PLAIN).views(model, batch, block, rng())
    torch.testing.assert_close(
        cart_weights(view.m2t, batch, block, 0.3, model), cart_by_hand(view.m2t, batch, block or 16, 0.3)
    )


@pytest.mark.parametrize("block", [4, 16])
def test_cart_weighs_by_the_visible_tokens_near(block: int) -> None:
    assert_cart(block)


def test_cart_that_sees_later_blocks_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "block_ids", lambda length, block, docs, grid: torch.zeros(len(docs), length))
    with pytest.raises(AssertionError):
        assert_cart()


def test_cart_weights_are_those_of_the_loss() -> None:
    model, batch = LayerModel(seed=1), example()
    objective = build("mask_and_edit", **{**PLAIN, "weighting": "cart"})
    (view,) = objective.views(model, batch, 4, rng())
    weight = objective.weights(view, batch)
    torch.testing.assert_close(
        weight[view.m2t].double(), cart_by_hand(view.m2t, batch, 4, 0.3)[view.m2t], rtol=1e-6, atol=1e-6
    )
    assert float(weight.max()) <= 1.0 and not weight[~view.m2t].any()


def shares(tilt: float) -> Tensor:
    """[4] how often each place of a block of four was masked, over many rows of rate 0.4."""
    model, config = LayerModel(), NoiseConfig(low=0.4, high=0.4, replace=0.0, tilt=tilt)
    tokens = torch.zeros(2000, 8, dtype=torch.long)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
    (view,) = corrupt(config, model, batch, 4, rng(2))
    size = unit_sizes(units("block", batch, 4), batch.learn)
    assert int(size[:, :2].min()) == 4
    torch.testing.assert_close(view.elbo[view.m2t], torch.full((int(view.m2t.sum()),), 2.5, dtype=torch.float64))
    return view.m2t.view(-1, 4).double().mean(dim=0)


def test_later_places_are_masked_more_and_the_mean_stays() -> None:
    wanted = torch.tensor([0.4 + 0.5 * (2 * (k + 0.5) / 4 - 1) * 0.4 for k in range(4)], dtype=torch.float64)
    torch.testing.assert_close(shares(0.5), wanted, atol=0.03, rtol=0)
    assert float(wanted.mean()) == pytest.approx(0.4)
    torch.testing.assert_close(shares(0.0), torch.full((4,), 0.4, dtype=torch.float64), atol=0.03, rtol=0)


def probability_squared(patch: pytest.MonkeyPatch) -> None:
    once = mask_and_edit.weighted_cross_entropy

    def unweighted_doubled(features: Tensor, head: Tensor, targets: Tensor, weight: Tensor, *more: Any) -> Any:
        total, scores = once(features, head, targets, weight, *more)
        return total, scores if bool(weight.any()) else replace(scores, nll=2 * scores.nll)

    patch.setattr(mask_and_edit, "weighted_cross_entropy", unweighted_doubled)


def earlier_places_masked_more(patch: pytest.MonkeyPatch) -> None:
    places = noise._places
    patch.setattr(noise, "_places", lambda unit, can: 1 - places(unit, can))


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (probability_squared, test_the_path_term_is_cross_entropy_by_its_own_probability_without_a_slope_through_it),
        (earlier_places_masked_more, test_later_places_are_masked_more_and_the_mean_stays),
    ],
)
def test_a_planted_error_is_noticed(plant: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()
