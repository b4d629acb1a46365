# DPO and the clipped ratio on shared masks: fixed points, signs, gradients.
# Entry points: pytest.
# The policy gradient is checked against the derivative of the bound itself.
"""Tests of core/preference.py."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from core.stand_ins import LayerModel, batch_of
from torch import Tensor

from hildanext.core.elbo import block_elbo
from hildanext.core.preference import dpo_loss, draw_views, ratio_loss, sequence_bounds


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pairs():
    tokens = torch.randint(0, 11, (6, 8), generator=rng())
    learn = torch.ones(6, 8, dtype=torch.bool)
    learn[:, :3] = False
    return batch_of(tokens[:3], learn[:3]), batch_of(tokens[3:], learn[3:])


def loss_of(model: LayerModel, reference: LayerModel, views) -> tuple[torch.Tensor, list[torch.Tensor]]:
    bounds = []
    for batch, drawn in zip(pairs(), views, strict=True):
        with torch.no_grad():
            fixed = sequence_bounds(reference, batch, 4, drawn)
        bounds.append((sequence_bounds(model, batch, 4, drawn), fixed))
    return dpo_loss(bounds[0], bounds[1]).mean(), [bounds[0][0], bounds[1][0]]


def test_agreeing_models_lose_exactly_ln_two_with_shared_masks_and_not_with_separate_ones():
    model, reference = LayerModel(), LayerModel()
    views = [draw_views(model, batch, 4, rng(), 2) for batch in pairs()]
    loss, _ = loss_of(model, reference, views)
    assert abs(float(loss.detach()) - math.log(2)) < 1e-12
    other = [draw_views(model, batch, 4, torch.Generator().manual_seed(5)) for batch in pairs()]
    won, lost = (sequence_bounds(model, batch, 4, drawn) for batch, drawn in zip(pairs(), views, strict=True))
    apart, _ = (sequence_bounds(model, batch, 4, drawn) for batch, drawn in zip(pairs(), other, strict=True))
    assert abs(float(dpo_loss((won, apart), (lost, lost)).mean().detach()) - math.log(2)) > 1e-6


def test_one_gradient_step_raises_the_won_bound_over_the_lost_and_the_printed_sign_lowers_it():
    for sign, better in ((1.0, True), (-1.0, False)):
        model, reference = LayerModel(), LayerModel()
        views = [draw_views(model, batch, 4, rng(), 4) for batch in pairs()]
        loss, before = loss_of(model, reference, views)
        (sign * loss).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
        _, after = loss_of(model, reference, views)
        margin = float(((after[0] - after[1]) - (before[0] - before[1])).mean().detach())
        assert (margin > 0) is better


def test_the_bound_is_never_positive_and_estimates_minus_the_elbo():
    model, (batch, _) = LayerModel(), pairs()
    bounds = sequence_bounds(model, batch, 4, draw_views(model, batch, 4, rng(), 600)).detach()
    assert bool((bounds <= 0).all())
    exact = -block_elbo(model, batch, 4, rng()).nats
    assert abs(float(bounds.sum()) - exact) < 0.05 * abs(exact)


def assert_policy_gradient(ratio_loss) -> None:
    model, (batch, _) = LayerModel(), pairs()
    views, advantage = draw_views(model, batch, 4, rng(), 2), torch.tensor([1.0, -0.5, 2.0])
    new = sequence_bounds(model, batch, 4, views)
    loss, ratio = ratio_loss(new, new.detach(), advantage)
    assert torch.equal(ratio, torch.ones_like(ratio))
    found = torch.autograd.grad(loss.sum(), list(model.parameters()), retain_graph=True, allow_unused=True)
    wanted = torch.autograd.grad(-(advantage * new).sum(), list(model.parameters()), allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None and other is None) or torch.allclose(one, other, atol=1e-12)


def test_the_ratio_of_an_unchanged_policy_is_one_and_its_gradient_is_the_policy_gradient():
    assert_policy_gradient(ratio_loss)


def assert_clipped(ratio_loss, shift: float, advantage: float, moves: bool) -> None:
    new = torch.tensor([shift], requires_grad=True)
    loss, ratio = ratio_loss(new, torch.zeros(1), torch.tensor([advantage]), clip=(0.2, 0.3))
    loss.sum().backward()
    assert bool(new.grad != 0) is moves
    edge = 1.3 if shift > 0 else 0.8
    wanted = -advantage * (float(ratio.detach()) if moves else edge)
    assert abs(float(loss.detach()) - wanted) < 1e-6


CORNERS = [(0.5, 1.0, False), (0.5, -1.0, True), (-0.5, -1.0, False), (-0.5, 1.0, True)]


@pytest.mark.parametrize(("shift", "advantage", "moves"), CORNERS)
def test_the_ratio_is_clipped_only_where_it_would_go_further(shift, advantage, moves):
    assert_clipped(ratio_loss, shift, advantage, moves)


def _wrong_ratio(fault: str, new: Tensor, old: Tensor, advantage: Tensor, clip=(0.2, 0.2)) -> tuple[Tensor, Tensor]:
    ratio = (new - old.detach()).exp() if fault != "ratio upside down" else (old.detach() - new).exp()
    low, high = clip[::-1] if fault == "edges swapped" else clip
    clipped = ratio if fault == "no clip" else ratio.clamp(1 - low, 1 + high)
    if fault == "clipped everywhere":
        return -clipped * advantage, ratio
    if fault == "advantage without sign":
        advantage = advantage.abs()
    if fault == "maximum for minimum":
        return -torch.maximum(ratio * advantage, clipped * advantage), ratio
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    return -loss if fault == "sign" else loss, ratio


@pytest.mark.parametrize("fault", ["sign", "advantage without sign", "ratio upside down"])
def test_a_wrong_ratio_loss_fails_the_policy_gradient(fault):
    assert_policy_gradient(partial(_wrong_ratio, "none"))
    with pytest.raises(AssertionError):
        assert_policy_gradient(partial(_wrong_ratio, fault))


@pytest.mark.parametrize(
    ("fault", "corner"),
    [
        ("no clip", 0), ("no clip", 2), ("clipped everywhere", 1), ("clipped everywhere", 3),
        ("edges swapped", 0), ("edges swapped", 2), ("maximum for minimum", 0), ("sign", 1),
    ],
)  # fmt: skip
def test_a_wrong_clip_fails_at_its_corner(fault, corner):
    assert_clipped(partial(_wrong_ratio, "none"), *CORNERS[corner])
    with pytest.raises(AssertionError):
        assert_clipped(partial(_wrong_ratio, fault), *CORNERS[corner])
