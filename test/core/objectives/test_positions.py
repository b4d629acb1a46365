# Where the loss may and may not look: unlabelled positions, batches with nothing to learn or nothing masked, [MASK].
# Entry points: pytest.
# Each check is run on the objectives and then on a fault planted in mask_and_edit.py or core/noise.py, which fails it.
"""Positions and tokens that must not matter to the objectives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from core.checks import rng
from core.recorder import Recorder, build, example
from core.stand_ins import LayerModel
from stand_in import StandIn
from torch import Tensor

from hildanext.core import noise
from hildanext.core.head import HeadOptions
from hildanext.core.objectives import mask_and_edit
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch

DIFFUSION = ["mask_and_edit", "multi_turn", "confidence", "soft", "guidelines", "dllm", "soft_ce"]
SCORED, WRITTEN, WEIGHTS = MaskAndEdit.scored_with_tokens, noise._written, MaskAndEdit.weights


def _over_the_masked(self: Any, views: Any, batch: Batch) -> Tensor:
    return torch.stack([view.m2t.sum() for view in views]).sum().float()


class Logits(StandIn):
    """Its logits are parameters [B, L, V], one for each position; the second view of a pair has the same."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(vocab_size=12, mask_id=11, dtype=torch.float64)
        generator = rng(8)
        self.raw = torch.randn(*batch.tokens.shape, 12, generator=generator, dtype=torch.float64).requires_grad_()
        self.asked: list[tuple[Tensor, Batch]] = []

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        self.asked.append((noisy, batch))
        return self.raw.repeat(len(noisy) // len(self.raw), 1, 1)[select]

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        return self.raw[select]


NOISES = [{"replace": 0.5}, {"complementary": True}, {"span": 1.0}, {"type": "random_replace"}]


def assert_unlabelled_stand(name: str, fields: dict[str, Any]) -> None:
    """Where learn is False nothing is masked or replaced, in either half, and the logits have no gradient; elsewhere
    they have one."""
    batch = example()
    tokens, model = batch.tokens.clone(), Logits(batch)
    build(name, **fields).loss(model, batch, 4, rng()).total.backward()
    assert bool((model.raw.grad[~batch.learn] == 0).all())
    assert bool((model.raw.grad[batch.learn] != 0).any())
    if name in ("mask_and_edit", "multi_turn", "soft"):
        assert bool((model.raw.grad[batch.learn].abs().sum(-1) > 0).all())
    for noisy, given in model.asked:
        halves = [half.view(-1, *tokens.shape) for half in (noisy, given.tokens)]
        assert all(torch.equal(view[~batch.learn], tokens[~batch.learn]) for half in halves for view in half)
        assert all(torch.equal(view, tokens) for view in halves[1])
        assert not torch.equal(halves[0][0], tokens)


@pytest.mark.parametrize("name", [*DIFFUSION, "autoregressive"])
@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: next(iter(noise)))
def test_unlabelled_positions_stand_in_both_halves_and_have_no_gradient(name, noise):
    assert_unlabelled_stand(name, {} if name == "autoregressive" else {"noise": noise})


def _everything(batch: Batch, mask_id: int) -> Tensor:
    return batch.tokens != mask_id


def _padding_written(config: Any, model: Any, view: Any, uniforms: Tensor) -> Any:
    made = WRITTEN(config, model, view, uniforms)
    return replace(made, tokens=torch.where(view.maskable, made.tokens, (made.tokens + 1) % 11))


def _noise_in_both_halves(self: Any, model: Any, given: Any, block: int, normaliser: Tensor) -> Any:
    return SCORED(self, model, replace(given, batch=replace(given.batch, tokens=given.view.tokens)), block, normaliser)


UNLABELLED_TOUCHED = {
    "noise anywhere": (noise, "maskable", _everything),
    "padding written": (noise, "_written", _padding_written),
    "loss anywhere": (MaskAndEdit, "weights", lambda *a, **k: WEIGHTS(*a, **k) + 0.1),
    "noise in the clean half": (MaskAndEdit, "scored_with_tokens", _noise_in_both_halves),
}


@pytest.mark.parametrize("fault", UNLABELLED_TOUCHED)
@pytest.mark.parametrize("name", ["mask_and_edit", "confidence"])
def test_noise_or_loss_at_unlabelled_positions_is_seen(name, fault, monkeypatch):
    monkeypatch.setattr(*UNLABELLED_TOUCHED[fault])
    with pytest.raises(AssertionError):
        assert_unlabelled_stand(name, {"noise": {"replace": 0.5}})


def assert_nothing_to_learn_is_nothing(name: str, block: int) -> None:
    model, batch = LayerModel(), example()
    nothing = replace(batch, learn=torch.zeros_like(batch.learn))
    noise = {"complementary": name != "dllm"}
    report = build(name, autoregressive=0.5, noise=noise).loss(model, nothing, block, rng())
    report.total.backward()
    assert float(report.total.detach()) == 0
    assert all(bool((p.grad == 0).all()) for p in model.parameters() if p.grad is not None)
    assert all(float(count) == 0 for count in report.counts.values())


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.parametrize("block", [1, 4, 16, 0])
def test_with_nothing_to_learn_the_loss_is_zero_and_the_gradients_too(name, block):
    assert_nothing_to_learn_is_nothing(name, block)


UNMASKED = {"high": 1e-3, "replace": 0.0}


def assert_nothing_masked_is_zero(name: str, fields: dict[str, Any], block: int) -> None:
    """A step whose draw masked nothing: loss 0, gradients 0, though there is something to learn."""
    model, batch = Recorder(), example()
    unit = {"unit": "sequence"} if name in ("guidelines", "dllm", "soft_ce") else {}
    keep = {} if name == "dllm" else {"keep_weight": 0.0}
    report = build(name, **keep, **fields, noise={**UNMASKED, **unit}).loss(model, batch, block, rng())
    assert all(torch.equal(noisy, batch.tokens) for noisy, _, _ in model.asked)
    loss = report.total / report.normaliser
    loss.backward()
    assert float(loss.detach()) == 0 and float(report.normaliser) > 0
    assert all(bool((p.grad == 0).all()) for p in model.parameters() if p.grad is not None)
    assert float(report.counts["m2t"]) == 0 and float(report.parts["m2t"]) == 0


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.parametrize("block", [1, 4, 0])
def test_with_nothing_masked_the_loss_is_zero_and_the_gradients_too(name, block):
    assert_nothing_masked_is_zero(name, {}, block)


@pytest.mark.parametrize("normaliser", ["document", "sequence", "position"])
def test_with_nothing_masked_every_normaliser_but_the_masked_count_gives_zero(normaliser):
    assert_nothing_masked_is_zero("mask_and_edit", {"normaliser": normaliser}, 4)
    with pytest.raises(AssertionError):
        assert_nothing_masked_is_zero("mask_and_edit", {"normaliser": "masked"}, 4)


def _divided_by_masked(self: Any, model: Any, given: Any, block: int, normaliser: Tensor) -> Any:
    made, scores = SCORED(self, model, given, block, normaliser)
    return replace(made, total=made.total / given.view.m2t.sum()), scores


DIVIDED = {
    "in the loss": ("scored_with_tokens", _divided_by_masked),
    "in the denominator": ("denominator", _over_the_masked),
    "visible tokens scored": ("weights", lambda *a, **k: WEIGHTS(*a, **k) + 0.1),
}


@pytest.mark.parametrize("fault", DIVIDED)
def test_dividing_by_the_masked_count_and_loss_on_visible_tokens_fail_the_zero(fault, monkeypatch):
    monkeypatch.setattr(MaskAndEdit, *DIVIDED[fault])
    with pytest.raises(AssertionError):
        assert_nothing_masked_is_zero("mask_and_edit", {}, 4)


@pytest.mark.parametrize("fault", ["in the loss", "visible tokens scored"])
def test_a_division_by_zero_and_loss_on_prompts_fail_with_nothing_to_learn(fault, monkeypatch):
    monkeypatch.setattr(MaskAndEdit, *DIVIDED[fault])
    with pytest.raises(AssertionError):
        assert_nothing_to_learn_is_nothing("mask_and_edit", 4)


def assert_mask_logit_is_ignored(name: str) -> None:
    """1e3 on the logit of [MASK] changes neither the loss nor any reported sum, and that logit has no gradient."""
    batch, reports = example(), []
    model = Logits(batch)
    for push in (0.0, 1e3):
        with torch.no_grad():
            model.raw[..., model.mask_id] += push
        reports.append(build(name).loss(model, batch, 4, rng()))
    reports[1].total.backward()
    assert float(reports[0].total.detach()) == float(reports[1].total.detach()) != 0
    assert all(float(value) == float(reports[1].parts[part]) for part, value in reports[0].parts.items())
    assert bool((model.raw.grad[..., model.mask_id] == 0).all()) and bool((model.raw.grad != 0).any())


@pytest.mark.parametrize("name", ["mask_and_edit", "multi_turn", "confidence", "soft", "autoregressive"])
def test_the_logit_of_mask_changes_nothing(name):
    assert_mask_logit_is_ignored(name)


@pytest.mark.parametrize("name", ["mask_and_edit", "multi_turn", "confidence", "soft"])
@pytest.mark.parametrize("wrong", [None, 10])
def test_a_head_that_excludes_nothing_or_another_token_is_seen(name, wrong, monkeypatch):
    monkeypatch.setattr(mask_and_edit, "HeadOptions", lambda exclude, smoothing: HeadOptions(wrong, smoothing))
    with pytest.raises(AssertionError):
        assert_mask_logit_is_ignored(name)
