# A loss in parts, backwards one after the other: the same gradient, memory of one part; thinned KEEP positions.
# Entry points: pytest.
# The joint backward is the oracle; kept bytes are counted with saved_tensors_hooks while they live.
"""Tests of Objective.losses, Objective.passes and MaskAndEdit.keep_share."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from core.recorder import Recorder, build, example, rng
from core.stand_ins import LayerModel
from torch import Tensor

from hildanext.core.loss_report import merged
from hildanext.core.noise import NoiseConfig, corrupt, mean_rate
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch, Denoiser, LossReport
from hildanext.registry import names

TWO = {"complementary": True, "low": 0.2, "high": 0.8}
MORE_OF_A_MODEL = ("align", "carry", "edit_actions")
"""Objectives that want more of a model than the stand-in has; test/contracts/test_objectives.py asks this of all."""
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in names("objectives") if name not in MORE_OF_A_MODEL),
    ("align", {"weight": 0.0, "over": {"type": "mask_and_edit", "noise": TWO}}),
    ("mask_and_edit", {"noise": TWO, "autoregressive": 0.3}),
    ("mask_and_edit", {"noise": TWO, "normaliser": "masked", "keep_share": 0.5}),
    ("confidence", {"noise": TWO}),
    ("confidence", {"noise": TWO, "confidence_over": "normaliser"}),
    ("multi_turn", {"noise": TWO, "turns": 3, "draft": "sample", "autoregressive": 0.3}),
    ("multi_turn", {"noise": TWO, "confidence": 1.0, "edit_above": 0.1, "normaliser": "document"}),
]


def slopes(model: LayerModel) -> list[Tensor]:
    found = [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_backwards_one_after_the_other_give_the_gradient_of_the_joint_backward(
    name: str, fields: dict[str, Any]
) -> None:
    objective, model, batch = build(name, **fields), LayerModel(), example()
    joint = objective.loss(model, batch, 4, rng())
    joint.total.backward()
    wanted, parts = slopes(model), []
    for part in objective.losses(model, batch, 4, rng()):
        part.total.backward()
        parts.append(part)
    whole = merged(parts)
    assert len(parts) == len(objective.passes) and torch.equal(whole.normaliser, joint.normaliser)
    assert float(whole.total) == pytest.approx(float(joint.total), rel=1e-6)
    assert {part: float(value) for part, value in whole.parts.items()} == pytest.approx(
        {part: float(value) for part, value in joint.parts.items()}
    )
    for one, other in zip(slopes(model), wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)


def most_kept(objective: Any, batch: Batch) -> int:
    """The most bytes that wait for a backward at a time."""
    model, held, most = LayerModel(), [0], [0]

    class Box:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, size = tensor.detach(), tensor.untyped_storage().nbytes()
            held[0] += size
            most[0] = max(most[0], held[0])
            weakref.finalize(self, self.left, size)

        @staticmethod
        def left(size: int) -> None:
            held[0] -= size

    with torch.autograd.graph.saved_tensors_hooks(Box, lambda box: box.tensor):
        for part in objective.losses(model, batch, 4, rng()):
            part.total.backward()
            del part
    return most[0]


def test_what_waits_for_a_backward_does_not_grow_with_turns_or_views() -> None:
    batch = example()
    one = most_kept(build("multi_turn", turns=1, noise={"low": 0.2, "high": 0.8}), batch)
    assert most_kept(build("multi_turn", turns=4, noise=TWO, autoregressive=0.1), batch) < 1.2 * one
    assert most_kept(build("mask_and_edit", noise=TWO), batch) < 1.2 * one


@pytest.mark.parametrize("name", ["mask_and_edit", "multi_turn", "guidelines"])
@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("noise", [{}, TWO, {"type": "random_replace"}, {"schedule": "cosine", "replace": 0.4}])
def test_the_passes_say_which_share_of_the_positions_reaches_the_head(
    name: str, share: float, noise: dict[str, Any]
) -> None:
    objective = build(name, keep_share=share, noise={"unit": "block", **noise})
    rows = torch.randint(0, 11, (64, 16), generator=rng(3))
    batch, model = Batch(rows, torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(rows), ()), Recorder()
    for seed in range(4):
        list(objective.losses(model, batch, 4, rng(seed)))
    found = [float(select.float().mean()) for _, _, select in model.asked]
    for index, one in enumerate(objective.passes):
        seen = found[index :: len(objective.passes)]
        assert sum(seen) / len(seen) == pytest.approx(one.scored, abs=0.06)


def test_the_mean_mask_rate_is_that_of_what_is_drawn() -> None:
    rows = torch.zeros(400, 32, dtype=torch.long)
    batch, model = Batch(rows, torch.ones_like(rows, dtype=torch.bool), rows.clone(), ()), LayerModel()
    for config in (NoiseConfig(), NoiseConfig(low=0.3, high=0.5), NoiseConfig(schedule="power", shape=3.0)):
        (view,) = corrupt(config, model, batch, 4, rng())
        assert float(view.m2t.float().mean()) == pytest.approx(mean_rate(config), abs=0.03)


@pytest.mark.parametrize("name", ["mask_and_edit", "multi_turn"])
def test_thinned_keep_positions_give_the_full_terms_mean_over_the_same_noise(name: str) -> None:
    """300 draws of the KEEP positions under one noise, against all of them."""
    model, batch, full = LayerModel(), example(), build(name, keep_weight=0.7)
    thin = full.model_copy(update={"keep_share": 0.3})
    (view,) = full.views(model, batch, 4, rng())
    weight, draws = full.weights(view, batch), rng(9)
    nll = torch.rand(weight.shape, generator=rng(5)) + 1
    found = []
    for _ in range(300):
        thinned = thin.thinned(weight, view, thin.thinning(batch, draws, 1))
        assert torch.equal(thinned[~view.keep], weight[~view.keep])
        found.append(float((thinned * nll)[view.keep].sum()))
    mean, error = torch.tensor(found).mean(), torch.tensor(found).std() / 300**0.5
    assert abs(float(mean) - float((weight * nll)[view.keep].sum())) < 4 * float(error)


def test_thinning_leaves_the_noise_as_it_is_and_is_off_by_default() -> None:
    batch, every, few = example(), Recorder(), Recorder()
    whole = build("mask_and_edit").loss(every, batch, 4, rng())
    build("mask_and_edit", keep_share=0.2).loss(few, batch, 4, rng())
    assert torch.equal(every.asked[0][0], few.asked[0][0])
    assert int(few.asked[0][2].sum()) < int(every.asked[0][2].sum())
    generator, other = rng(), rng()
    build("mask_and_edit").loss(LayerModel(), batch, 4, generator)
    corrupt(NoiseConfig(), LayerModel(), batch, 4, other)
    assert torch.equal(generator.get_state(), other.get_state())
    again = build("mask_and_edit", keep_share=0.2, keep_weight=0.0).loss(LayerModel(), batch, 4, rng())
    assert torch.equal(again.total, build("mask_and_edit", keep_weight=0.0).loss(LayerModel(), batch, 4, rng()).total)
    assert not torch.equal(again.total, whole.total)


def test_an_objective_with_a_loss_of_its_own_is_trained_with_it() -> None:
    class Doubled(MaskAndEdit):
        """Twice the loss of mask_and_edit."""

        def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
            made = super().loss(model, batch, block, rng)
            return LossReport(2 * made.total, made.normaliser, made.parts, made.counts)

    own, plain = Doubled(noise=NoiseConfig(**TWO)), MaskAndEdit(noise=NoiseConfig(**TWO))
    (report,) = own.losses(LayerModel(), example(), 4, rng())
    assert torch.equal(report.total, 2 * plain.loss(LayerModel(), example(), 4, rng()).total)
    assert [one.views for one in own.passes] == [2] and [one.views for one in plain.passes] == [1, 1]
