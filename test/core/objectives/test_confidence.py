# The entropy term of confidence-aware training against a loop over positions, its gradient, and planted faults.
# Entry points: pytest.
# A check is a function that a wrong choice of positions or a wrong sum is shown to fail.
"""Tests of objectives/confidence.py."""

from __future__ import annotations

import pytest
import torch
from core.recorder import Recorder, build, example, mean, rng
from core.stand_ins import LayerModel, UniformModel

from hildanext.core.loss_report import merged
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch


def assert_plain_loss(strength: float) -> None:
    batch = example(rows=16)
    plain = build("mask_and_edit").loss(LayerModel(), batch, 4, rng())
    same = build("confidence", confidence=strength).loss(LayerModel(), batch, 4, rng())
    assert float(plain.total.detach()) == float(same.total.detach())


def assert_mean_entropy_of_right_predictions() -> None:
    batch, model = example(rows=16), Recorder()
    plain = build("mask_and_edit").loss(LayerModel(), batch, 4, rng())
    report = build("confidence", confidence=2.0).loss(model, batch, 4, rng())
    noisy, _, _ = model.asked[0]
    logits = model.logits(0, 4)
    logs, entropies = logits.log_softmax(-1), []
    for row in range(16):
        for place in range(16):
            right = int(logits[row, place].argmax()) == int(batch.tokens[row, place])
            if int(noisy[row, place]) == model.mask_id and right:
                entropies.append(-sum(float(value.exp() * value) for value in logs[row, place]))
    assert len(entropies) >= 3
    wanted = 2.0 * sum(entropies) / len(entropies)
    assert abs(float((mean(report) - mean(plain)).detach()) - wanted) < 1e-5
    assert abs(float(report.parts["confidence"] / report.counts["confidence"]) - wanted / 2) < 1e-9


def test_confidence_zero_is_the_plain_loss_and_its_term_is_the_mean_entropy_of_right_predictions():
    assert_plain_loss(0.0)
    assert_mean_entropy_of_right_predictions()
    with pytest.raises(AssertionError):
        assert_plain_loss(1e-3)


def assert_gradient_through_right_masked(right: bool) -> None:
    batch = example()
    target = batch.tokens if right else (batch.tokens + 1) % 11
    raw = torch.nn.functional.one_hot(target, 12).double().mul(2).requires_grad_()

    class Logits(UniformModel):
        def noisy_features(self, noisy, given, block, select):
            self.noisy = noisy
            return raw[select]

        def head(self):
            return torch.eye(12, dtype=torch.float64)

    model = Logits(12)
    found, totals = [], []
    for strength in (0.0, 2.0):
        report = build("confidence", confidence=strength).loss(model, batch, 4, rng())
        found.append(torch.autograd.grad(report.total, raw)[0])
        totals.append(float(report.total.detach()))
    assert (totals[0] == totals[1]) is not right
    moved = (found[1] - found[0]).abs().sum(-1) > 1e-9
    masked = (model.noisy == model.mask_id) & batch.learn
    assert torch.equal(moved, masked if right else torch.zeros_like(masked))


@pytest.mark.parametrize("right", [True, False])
def test_the_confidence_gradient_goes_through_right_masked_predictions_only(right):
    assert_gradient_through_right_masked(right)


ENTROPY = MaskAndEdit._entropy_weights


def _right_and_wrong(self, inputs, options, masked, normaliser):
    return self.confidence * masked.float() * normaliser / masked.sum().clamp(min=1)


def _visible_too(self, inputs, options, masked, normaliser):
    return ENTROPY(self, inputs, options, masked | True, normaliser)


def _entropy_sum(self, inputs, options, masked, normaliser):
    return self.confidence * (ENTROPY(self, inputs, options, masked, normaliser) > 0).float()


def _entropy_raised(self, inputs, options, masked, normaliser):
    return -ENTROPY(self, inputs, options, masked, normaliser)


def _entropy_of_nothing(self, inputs, options, masked, normaliser):
    made = ENTROPY(self, inputs, options, masked, normaliser)
    return made if bool((made > 0).any()) else made + self.confidence / len(made)


@pytest.mark.parametrize("fault", [_right_and_wrong, _visible_too, _entropy_sum, _entropy_raised])
def test_another_entropy_term_fails_the_mean_entropy(fault, monkeypatch):
    monkeypatch.setattr(MaskAndEdit, "_entropy_weights", fault)
    with pytest.raises(AssertionError):
        assert_mean_entropy_of_right_predictions()


@pytest.mark.parametrize(
    ("fault", "right"), [(_right_and_wrong, False), (_visible_too, True), (_entropy_of_nothing, False)]
)
def test_a_gradient_through_other_predictions_fails(fault, right, monkeypatch):
    monkeypatch.setattr(MaskAndEdit, "_entropy_weights", fault)
    with pytest.raises(AssertionError):
        assert_gradient_through_right_masked(right)


def test_the_shared_denominator_makes_the_confidence_term_independent_of_the_split():
    batch, objective = example(), build("confidence", confidence_over="normaliser")
    parts = [Batch(batch.tokens[s], batch.learn[s], batch.docs[s], batch.ids[s]) for s in (slice(0, 1), slice(1, 4))]
    model = LayerModel()
    whole, split = objective.loss(model, batch, 4, rng()), merged([objective.loss(model, p, 4, rng()) for p in parts])
    assert abs(float(whole.total.detach()) - float(split.total.detach())) < 1e-4
