# Sums over micro-batches, and log V: what makes losses of different splits, noises and objectives comparable.
# Entry points: pytest.
# Each check is run on the objectives and then on a fault planted in mask_and_edit.py or core/noise.py, which fails it.
"""Accumulation and scale of the objectives' losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from core.checks import assert_mean_is, rng
from core.recorder import Recorder, build, example
from core.stand_ins import LayerModel, UniformModel
from torch import Tensor
from torch.nn import functional

from hildanext.core import noise
from hildanext.core.head import HeadOptions
from hildanext.core.loss_report import autoregressive_report, scored_positions
from hildanext.core.objectives import mask_and_edit
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch, LossReport

LOSS, WEIGHTS, UNIFORMS = MaskAndEdit.loss, MaskAndEdit.weights, noise.row_uniforms


def rows_of(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.tokens[rows], batch.learn[rows], batch.docs[rows], batch.ids[rows])


def gradients(model: LayerModel, reports: list[LossReport]) -> list[Tensor]:
    """Of the loss of one optimiser step: sums over its micro-batches, one division."""
    for report in reports:
        report.total.backward()
    divisor = sum(float(report.normaliser) for report in reports)
    return [parameter.grad / divisor for parameter in model.parameters()]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max()) <= 1e-6 * float(other.abs().max()) + 1e-12


def assert_micro_batches_add_up(name: str, **fields: Any) -> None:
    batch, objective = example(), build(name, **fields)
    whole, split = LayerModel(), LayerModel()
    wanted = gradients(whole, [objective.loss(whole, batch, 4, rng())])
    parts = [rows_of(batch, slice(0, 1)), rows_of(batch, slice(1, 4))]
    assert_same(gradients(split, [objective.loss(split, part, 4, rng()) for part in parts]), wanted)


def assert_micro_batches_give_the_plain_gradient() -> None:
    """Of F.cross_entropy in float64 over all rows, masked tokens weighing one over their rate, the others one."""
    batch, objective, model = example(), build("mask_and_edit"), Recorder()
    (view,) = objective.views(model, batch, 4, rng())
    every = torch.ones_like(batch.learn)
    logits = (model.noisy_features(view.tokens, batch, 4, every) @ model.head().T)[:, : model.mask_id]
    nll = functional.cross_entropy(logits, batch.tokens.flatten(), reduction="none").view(batch.tokens.shape)
    weight = torch.where(view.tokens == model.mask_id, 1 / view.rate, 1.0) * batch.learn
    wanted = torch.autograd.grad((weight * nll).sum() / int(batch.learn.sum()), list(model.parameters()))
    split, parts = LayerModel(), [rows_of(batch, slice(0, 1)), rows_of(batch, slice(1, 4))]
    assert_same(gradients(split, [objective.loss(split, part, 4, rng()) for part in parts]), list(wanted))


@pytest.mark.parametrize("name", ["mask_and_edit", "multi_turn", "soft", "guidelines", "dllm", "autoregressive"])
def test_uneven_micro_batches_give_the_gradient_of_one_batch(name):
    assert_micro_batches_add_up(name)


NORMALISERS = ["token", "masked", "document", "sequence", "position"]


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("name", ["mask_and_edit", "multi_turn"])
def test_uneven_micro_batches_with_a_side_term_give_the_gradient_of_one_batch(name, normaliser):
    assert_micro_batches_add_up(name, autoregressive=0.7, normaliser=normaliser)


def _per_token_of_its_own(self: Any, model: Any, batch: Batch, normaliser: Tensor) -> Any:
    side = autoregressive_report(model, batch)
    yield replace(side, total=0.7 * normaliser / side.normaliser * side.total, normaliser=torch.zeros(()))


def test_a_side_term_scaled_by_what_is_in_its_micro_batch_does_not_add_up(monkeypatch):
    monkeypatch.setattr(MaskAndEdit, "side_term", _per_token_of_its_own)
    with pytest.raises(AssertionError):
        assert_micro_batches_add_up("mask_and_edit", autoregressive=0.7)


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("complementary", [False, True])
def test_a_token_of_the_side_term_weighs_what_a_masked_token_does(normaliser, complementary):
    """Under masks of rate 1/2 whose positions weigh 1 and cost log V each, as the next tokens do."""
    fields = {"normaliser": normaliser, "weighting": "uniform", "t2t_weight": 0.0, "keep_weight": 0.0}
    half = {"replace": 0.0, "low": 0.5, "high": 0.5, "complementary": complementary}
    model, batch = UniformModel(12), example()
    objective = build("mask_and_edit", **fields, noise=half, autoregressive=1.0)
    reports = list(objective.losses(model, batch, 4, rng()))
    share = {"masked": 1.0 if complementary else 0.5}.get(normaliser, 1.0)
    unit = noise.units(normaliser, batch, 0) if normaliser in ("document", "sequence") else None
    wanted = 0.0
    for row, place in (scored_positions(batch, model.mask_id)).nonzero().tolist():
        same = batch.learn[row] & (unit[row] == unit[row, place]) if unit is not None else None
        wanted += share * math.log(model.vocab_size - 1) / (1 if same is None else int(same.sum()))
    assert float(reports[-1].total.detach()) == pytest.approx(wanted, rel=1e-5)
    assert float(reports[-1].normaliser) == 0


def test_uneven_micro_batches_give_the_gradient_of_plain_cross_entropy_over_all_rows():
    assert_micro_batches_give_the_plain_gradient()


def _mean(self: Any, *given: Any) -> LossReport:
    made = LOSS(self, *given)
    return replace(made, total=made.total / made.normaliser, normaliser=torch.tensor(1.0))


def _masks_of_the_place(batch: Batch, generator: torch.Generator, count: int) -> Tensor:
    return UNIFORMS(replace(batch, ids=()), generator, count)


def _every_position(self: Any, views: Any, batch: Batch) -> Tensor:
    return torch.tensor(float(batch.tokens.numel()))


@pytest.mark.parametrize("target", ["loss", "row_uniforms"])
def test_a_mean_of_means_and_masks_that_depend_on_the_split_do_not_add_up(target, monkeypatch):
    where, fault = (MaskAndEdit, _mean) if target == "loss" else (noise, _masks_of_the_place)
    monkeypatch.setattr(where, target, fault)
    for check in (assert_micro_batches_give_the_plain_gradient, lambda: assert_micro_batches_add_up("mask_and_edit")):
        with pytest.raises(AssertionError):
            check()


@pytest.mark.parametrize(
    ("name", "fault"),
    [("denominator", _every_position), ("weights", lambda *a, **k: WEIGHTS(*a, **k) ** 0)],
)  # fmt: skip
def test_another_denominator_or_weight_fails_the_plain_gradient(name, fault, monkeypatch):
    monkeypatch.setattr(MaskAndEdit, name, fault)
    with pytest.raises(AssertionError):
        assert_micro_batches_give_the_plain_gradient()


PLAIN = {"t2t_weight": 0.0, "keep_weight": 0.0}
ELBOS = [
    ("mask_and_edit", {**PLAIN, "normaliser": normaliser, "noise": {"replace": 0.2, **noise}})
    for normaliser in ("token", "document", "sequence")
    for noise in (
        {}, {"unit": "sequence"}, {"low": 0.3, "high": 0.8}, {"schedule": "cosine"}, {"complementary": True},
        {"draw": "count"}, {"draw": "count", "unit": "document"},
        {"complementary": True, "schedule": "sigmoid", "low": 0.2},
    )
]  # fmt: skip
ELBOS += [("multi_turn", PLAIN), ("soft", PLAIN)]
ELBOS += [(name, {}) for name in ("guidelines", "dllm", "soft_ce", "autoregressive")]


def assert_scores_log_v(name: str, fields: dict[str, Any]) -> None:
    """Each token's nll is log V; the loss and the reported bound have mean log V."""
    objective, model, losses, bounds = build(name, **fields), UniformModel(12), [], []
    wanted = math.log(12 if name in ("guidelines", "dllm", "soft_ce") else 11)
    set_name = "autoregressive" if name == "autoregressive" else "m2t"
    for seed in range(25):
        batch = replace(example(rows=24, seed=seed), ids=tuple(range(24 * seed, 24 * seed + 24)))
        if name in ("guidelines", "soft_ce"):
            batch = replace(batch, learn=torch.ones_like(batch.learn))
        report = objective.loss(model, batch, 4, rng(seed))
        losses.append(float(report.total / report.normaliser))
        assert abs(float(report.parts[set_name] / report.counts[set_name]) - wanted) < 1e-6
        bound = "elbo" if "elbo" in report.parts else set_name
        bounds.append(float(report.parts[bound] / report.counts[bound]))
    assert_mean_is(torch.tensor(losses), wanted, 1e-5)
    assert_mean_is(torch.tensor(bounds), wanted, 1e-5)


@pytest.mark.parametrize(("name", "fields"), ELBOS)
def test_a_uniform_model_scores_log_v_under_every_weighting_that_claims_to_be_an_elbo(name, fields):
    assert_scores_log_v(name, fields)


def _over_the_masked(self: Any, views: Any, batch: Batch) -> Tensor:
    return torch.stack([view.m2t.sum() for view in views]).sum().float()


NOT_AN_ELBO = {
    "one instead of 1/t": ({}, noise, "_capped", lambda weight, config: weight**0),
    "divided by masked tokens": ({}, MaskAndEdit, "denominator", _over_the_masked),
    "divided by all positions": ({}, MaskAndEdit, "denominator", _every_position),
    "both views whole": (
        {"noise": {"complementary": True}},
        MaskAndEdit,
        "weights",
        lambda self, view, batch, share: WEIGHTS(self, view, batch),
    ),
    "[MASK] among the tokens": (
        {}, mask_and_edit, "HeadOptions", lambda exclude, smoothing: HeadOptions(None, smoothing),
    ),
    "rows of any length alike": (
        {"normaliser": "document"}, MaskAndEdit, "row_factor", lambda self, view, batch: 1 / 7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", NOT_AN_ELBO)
def test_what_is_no_elbo_does_not_score_log_v(fault, monkeypatch):
    fields, where, name, wrong = NOT_AN_ELBO[fault]
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError):
        assert_scores_log_v("mask_and_edit", {**PLAIN, **fields})


def test_uniform_weights_and_a_cap_do_not_score_log_v():
    for fields in ({"weighting": "uniform"}, {"noise": {"cap": 2.0}}):
        with pytest.raises(AssertionError):
            assert_scores_log_v("mask_and_edit", {**PLAIN, **fields})


def assert_pair_scores_each_token_once() -> None:
    """Unweighted, the two views of a complementary pair divide the tokens; ELBO weights give each view its half."""
    batch, model = example(), UniformModel(12)
    for weighting in ("uniform", "elbo"):
        fields = {**PLAIN, "weighting": weighting, "noise": {"replace": 0.0, "complementary": True}}
        report = build("mask_and_edit", **fields).loss(model, batch, 4, rng())
        views = noise.corrupt(build("mask_and_edit", **fields).noise, model, batch, 4, rng())
        weight = [view.m2t * (1.0 if weighting == "uniform" else 0.5 / view.rate) for view in views]
        assert torch.equal(sum(view.m2t.long() for view in views), batch.learn.long())
        assert float(report.counts["m2t"]) == float(report.normaliser) == int(batch.learn.sum())
        wanted = math.log(11) * float(sum(weight).sum())
        assert abs(float(report.total) - wanted) < 1e-5 * wanted


def test_a_complementary_pair_scores_each_token_once():
    assert_pair_scores_each_token_once()


PAIRS = {
    "half of each": ("weights", lambda self, view, batch, share=1.0: WEIGHTS(self, view, batch, share) / 2),
    "both whole": ("weights", lambda self, view, batch, share=1.0: WEIGHTS(self, view, batch)),
    "first view only": ("views", lambda self, *given: noise.corrupt(self.noise, *given)[:1]),
    "divided by both": ("denominator", lambda self, views, batch: 2 * batch.learn.sum().float()),
}


@pytest.mark.parametrize("fault", PAIRS)
def test_a_pair_with_other_weights_or_counts_fails(fault, monkeypatch):
    monkeypatch.setattr(MaskAndEdit, *PAIRS[fault])
    with pytest.raises(AssertionError):
        assert_pair_scores_each_token_once()
