# DPO and the clipped ratio on shared masks: fixed points, signs, gradients.
# Entry points: pytest.
# The bound is checked against the average over orders, the policy gradient against the derivative of the bound itself.
"""Tests of core/preference.py."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from core.checks import assert_mean_is, rng
from core.orders import order_average
from core.stand_ins import LayerModel, TableModel, batch_of
from torch import Tensor
from torch.nn import functional

from hildanext.core import preference
from hildanext.core.preference import draw_views, ratio_loss, sequence_bounds


def pairs():
    tokens = torch.randint(0, 11, (6, 8), generator=rng())
    learn = torch.ones(6, 8, dtype=torch.bool)
    learn[:, :3] = False
    return batch_of(tokens[:3], learn[:3]), batch_of(tokens[3:], learn[3:])


def bounds_of(score, model: LayerModel, seeds: tuple[int, int] = (0, 0)) -> list[Tensor]:
    """score: sequence_bounds or a wrong one; on the won and the lost texts, on masks drawn from these seeds."""
    drawn = [draw_views(model, batch, 4, rng(seed), 4) for batch, seed in zip(pairs(), seeds, strict=True)]
    return [score(model, batch, 4, views) for batch, views in zip(pairs(), drawn, strict=True)]


def assert_agreeing_models_lose_ln_two(seeds: tuple[int, int] = (0, 0)) -> None:
    """The reference scores the masks drawn from `seeds`, the model those drawn from 0."""
    score = preference.sequence_bounds
    model, reference = bounds_of(score, LayerModel()), bounds_of(score, LayerModel(), seeds)
    loss = preference.dpo_loss((model[0], reference[0]), (model[1], reference[1]))
    assert float((loss - math.log(2)).abs().max().detach()) < 1e-12


def assert_a_step_raises_the_won_over_the_lost() -> None:
    """Judged by bounds with the sign of the text."""
    model, margins = LayerModel(), []
    made = bounds_of(preference.sequence_bounds, model)
    preference.dpo_loss((made[0], made[0].detach()), (made[1], made[1].detach())).mean().backward()
    for step in (0.0, 0.05):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= step * parameter.grad
        won, lost = bounds_of(sequence_bounds, model)
        margins.append(float((won - lost).mean().detach()))
    assert margins[1] > margins[0]


def assert_the_loss_is_the_printed_form() -> None:
    """-log(1 / (1 + exp(-beta (dB_w - dB_l)))), by hand, where model and reference differ."""
    values = torch.randn(4, 5, generator=rng(), dtype=torch.float64) * 20
    found = preference.dpo_loss((values[0], values[1]), (values[2], values[3]), beta=0.3)
    for i, (new_won, old_won, new_lost, old_lost) in enumerate(values.T.tolist()):
        margin = 0.3 * ((new_won - old_won) - (new_lost - old_lost))
        assert abs(float(found[i]) - math.log1p(math.exp(-margin))) < 1e-9


def test_agreeing_models_lose_exactly_ln_two_with_shared_masks_and_not_with_separate_ones():
    assert_agreeing_models_lose_ln_two()
    with pytest.raises(AssertionError):
        assert_agreeing_models_lose_ln_two(seeds=(0, 5))


def test_one_gradient_step_raises_the_won_bound_over_the_lost():
    assert_a_step_raises_the_won_over_the_lost()


def test_the_pair_loss_is_the_printed_form():
    assert_the_loss_is_the_printed_form()


def assert_bound_estimates_minus_the_elbo() -> None:
    """B <= 0 for every text, and its mean over masks is minus the average over orders, worked out by hand."""
    model, row = TableModel(3, 4), torch.randint(0, 3, (1, 8), generator=rng())
    learn = torch.ones(4000, 8, dtype=torch.bool)
    learn[:, 0] = False
    batch = batch_of(row.expand(4000, 8), learn)
    bounds = preference.sequence_bounds(model, batch, 4, draw_views(model, batch, 4, rng(), 2)).detach()
    assert bool((bounds <= 0).all())
    assert_mean_is(bounds, -order_average(model, row[0].tolist()))


def test_the_bound_is_never_positive_and_estimates_minus_the_elbo():
    assert_bound_estimates_minus_the_elbo()


def _wrong_dpo(fault: str, won: tuple[Tensor, Tensor], lost: tuple[Tensor, Tensor], beta: float = 0.1) -> Tensor:
    margin = (won[0] - won[1]) - (lost[0] - lost[1])
    if fault == "no reference":
        margin = won[0] - lost[0]
    if fault == "pairs exchanged":
        margin = -margin
    if fault == "lost added":
        margin = (won[0] - won[1]) + (lost[0] - lost[1])
    if fault == "no beta":
        beta = 1.0
    return -functional.logsigmoid(beta * margin)


DPO_FAULTS = [
    ("no reference", assert_agreeing_models_lose_ln_two),
    ("no reference", assert_the_loss_is_the_printed_form),
    ("pairs exchanged", assert_a_step_raises_the_won_over_the_lost),
    ("pairs exchanged", assert_the_loss_is_the_printed_form),
    ("lost added", assert_the_loss_is_the_printed_form),
    ("no beta", assert_the_loss_is_the_printed_form),
]


@pytest.mark.parametrize(("fault", "check"), DPO_FAULTS)
def test_a_wrong_pair_loss_fails(fault, check, monkeypatch):
    monkeypatch.setattr(preference, "dpo_loss", partial(_wrong_dpo, "none"))
    check()
    monkeypatch.setattr(preference, "dpo_loss", partial(_wrong_dpo, fault))
    with pytest.raises(AssertionError):
        check()


BOUND_FAULTS = {
    "printed sign": lambda *given: -sequence_bounds(*given),
    "sum of views": lambda model, batch, block, views: sequence_bounds(model, batch, block, views) * len(views),
    "no weight": lambda model, batch, block, views: sequence_bounds(
        model, batch, block, tuple(replace(view, elbo=view.elbo**0) for view in views)
    ),
    "mean of tokens": lambda *given: sequence_bounds(*given) / 7,
}


@pytest.mark.parametrize("fault", BOUND_FAULTS)
def test_a_wrong_bound_of_a_text_fails(fault, monkeypatch):
    monkeypatch.setattr(preference, "sequence_bounds", BOUND_FAULTS[fault])
    with pytest.raises(AssertionError):
        assert_bound_estimates_minus_the_elbo()


def test_the_printed_sign_of_the_bound_trains_backwards(monkeypatch):
    monkeypatch.setattr(preference, "sequence_bounds", BOUND_FAULTS["printed sign"])
    assert_agreeing_models_lose_ln_two()
    with pytest.raises(AssertionError):
        assert_a_step_raises_the_won_over_the_lost()


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
