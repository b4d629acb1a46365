# Multi-turn forward: what the second turn sees, what it is asked for, and that no gradient goes through a draft.
# Entry points: pytest.
# The recorder keeps every input, so each turn can be recomputed as a turn of its own.
"""Tests of core/objectives/multi_turn.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from core.stand_ins import LayerModel, UniformModel, batch_of
from scipy import stats
from torch import Tensor

from hildanext import registry
from hildanext.core.objectives import multi_turn
from hildanext.core.objectives.mask_and_edit import Supervision
from hildanext.core.objectives.multi_turn import MultiTurn
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import Batch

TOKENS = torch.randint(0, 11, (6, 16), generator=torch.Generator().manual_seed(1))
LEARN = (torch.arange(16) >= 3).expand(6, 16).clone()
BATCH = batch_of(TOKENS, LEARN, ids=tuple(range(6)))


class Recorder(LayerModel):
    """A LayerModel that keeps its noisy inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        self.asked.append(noisy)
        return super().noisy_features(noisy, batch, block, select)

    def best(self, noisy: Tensor) -> Tensor:
        every = torch.ones_like(noisy, dtype=torch.bool)
        logits = LayerModel.noisy_features(self, noisy, BATCH, 4, every) @ self.head()[: self.mask_id].T
        return logits.argmax(-1).view(noisy.shape)


def build(name: str = "multi_turn", **fields):
    return registry.build("objectives", {"type": name, **fields})


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_one_turn_is_mask_and_edit():
    one, other = build(turns=1), build("mask_and_edit")
    model = LayerModel()
    assert float(one.loss(model, BATCH, 4, rng()).total.detach()) == float(
        other.loss(model, BATCH, 4, rng()).total.detach()
    )


def assert_fills_with_best(draft: str = "best") -> None:
    model = Recorder()
    build(turns=3, fill=0.5, draft=draft).loss(model, BATCH, 4, rng())
    assert len(model.asked) == 3
    for before, after in zip(model.asked, model.asked[1:], strict=False):
        changed = before != after
        assert bool((before[changed] == model.mask_id).all())
        assert torch.equal(after[changed], model.best(before)[changed])
        filled = int(changed.sum()) / int((before == model.mask_id).sum())
        assert 0.2 < filled < 0.8


def assert_fills_all_or_none() -> None:
    model = Recorder()
    build(turns=2, fill=1.0).loss(model, BATCH, 4, rng())
    assert not bool((model.asked[1] == model.mask_id).any())
    model = Recorder()
    twice = build(turns=2, fill=0.0).loss(model, BATCH, 4, rng())
    once = build("mask_and_edit").loss(model, BATCH, 4, rng())
    assert torch.equal(model.asked[0], model.asked[1])
    assert abs(float((twice.total - once.total).detach())) < 1e-5


def assert_edits_visible_only() -> None:
    model = Recorder()
    build(turns=2, fill=0.0, edit_above=0.0).loss(model, BATCH, 4, rng())
    before, after = model.asked
    visible = (before != model.mask_id) & LEARN
    assert torch.equal(after[visible], model.best(before)[visible])
    assert torch.equal(after[~LEARN], TOKENS[~LEARN])


def assert_mean_of_turns() -> None:
    model = Recorder()
    exact = build(
        turns=2, fill=0.5, weighting="uniform", t2t_weight=1.5, keep_weight=0.2, noise={"may_draw_original": False}
    )
    report = exact.loss(model, BATCH, 4, rng())
    total = sum(_turn_loss(model, noisy) for noisy in model.asked) / 2
    assert abs(float(report.total.detach()) - total) < 1e-4


def _turn_loss(model: Recorder, noisy: Tensor) -> float:
    every = torch.ones_like(noisy, dtype=torch.bool)
    logits = LayerModel.noisy_features(model, noisy, BATCH, 4, every) @ model.head()[: model.mask_id].T
    nll = -logits.log_softmax(-1).gather(1, TOKENS.flatten()[:, None]).view(noisy.shape)
    weight = torch.where(noisy == model.mask_id, 1.0, torch.where(noisy != TOKENS, 1.5, 0.2)) * LEARN
    return float((weight * nll).sum().detach())


def assert_gradient_of_fixed_inputs() -> None:
    model = Recorder()
    objective = build(turns=2, fill=0.5, weighting="uniform", keep_weight=1.0, noise={"may_draw_original": False})
    found = torch.autograd.grad(objective.loss(model, BATCH, 4, rng()).total, list(model.parameters()))
    inputs = list(model.asked)
    every = torch.ones_like(LEARN)
    nll = torch.zeros((), dtype=torch.float64)
    for noisy in inputs:
        logits = LayerModel.noisy_features(model, noisy, BATCH, 4, every) @ model.head()[: model.mask_id].T
        nll = nll - (logits.log_softmax(-1).gather(1, TOKENS.flatten()[:, None])[:, 0] * LEARN.flatten()).sum() / 2
    for one, other in zip(found, torch.autograd.grad(nll, list(model.parameters())), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def assert_later_weights_have_mean_one() -> None:
    rows = torch.randint(0, 11, (1500, 8), generator=rng())
    batch, model, objective = batch_of(rows), LayerModel(), build(fill=0.6, noise={"replace": 0.0, "low": 0.2})
    (view,) = objective.views(model, batch, 4, rng())
    with torch.no_grad():
        _, scores = objective.scored_with_tokens(model, _supervision(view, batch), 4, torch.tensor(1.0))
    later = objective.next_view(view, batch, scores, torch.rand(1500, 8, generator=rng()).double())
    means = (later.m2t * later.elbo).mean(1)
    assert abs(float(means.mean()) - 1) <= 4 * float(means.std()) / 1500**0.5
    assert int(later.m2t.sum()) < 0.6 * int(view.m2t.sum())


def _supervision(view, batch):
    return Supervision(view, batch, torch.ones_like(batch.tokens).float(), view.maskable)


def test_the_next_turn_holds_the_models_best_tokens_where_masks_were_filled():
    assert_fills_with_best()


def test_filling_all_leaves_no_mask_and_filling_none_repeats_the_turn():
    assert_fills_all_or_none()


def test_edits_above_zero_rewrite_visible_tokens_but_never_the_prompt():
    assert_edits_visible_only()


def test_the_loss_is_the_mean_of_its_turns_each_supervised_by_the_original():
    assert_mean_of_turns()


def test_the_gradient_is_that_of_the_turns_with_their_inputs_held_fixed():
    assert_gradient_of_fixed_inputs()


def test_later_turns_keep_the_mean_elbo_weight_of_a_masked_token_at_one():
    assert_later_weights_have_mean_one()


class Known(UniformModel):
    """The same distribution at every position: token v with probability (v + 1) / 66."""

    def __init__(self) -> None:
        super().__init__(12)
        self.asked: list[Tensor] = []

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        self.asked.append(noisy)
        return torch.arange(1, 13).double().log().expand(int(select.sum()), 12)

    def head(self) -> Tensor:
        return torch.eye(12, dtype=torch.float64)


def assert_fills_with_draws() -> None:
    """Filled masks follow the model's distribution, edits are its best tokens, and a row's draws are its own."""
    model, rows = Known(), torch.randint(0, 10, (400, 16), generator=rng())
    objective = build(draft="sample", fill=0.5, edit_above=0.1, noise={"replace": 0.2})
    objective.loss(model, batch_of(rows, ids=tuple(range(400))), 4, rng())
    before, after = model.asked
    masked = before == model.mask_id
    filled = after[masked & (after != model.mask_id)]
    found, wanted = torch.bincount(filled, minlength=11), torch.arange(1, 12).double() / 66 * len(filled)
    assert stats.chisquare(found.numpy(), wanted.numpy()).pvalue > 1e-3
    assert 0.45 < len(filled) / int(masked.sum()) < 0.55
    assert bool((after[~masked] == 10).all())
    alone = Known()
    objective.loss(alone, batch_of(rows[7:8], ids=(7,)), 4, rng())
    assert torch.equal(alone.asked[1], after[7:8])


def test_a_sampled_draft_follows_the_models_distribution():
    assert_fills_with_draws()
    with pytest.raises(AssertionError):
        assert_fills_with_best("sample")


def test_draws_from_the_numbers_that_choose_what_is_filled_fail(monkeypatch):
    monkeypatch.setattr(multi_turn, "row_uniforms", lambda *given: row_uniforms(*given)[:1].expand(2, -1, -1))
    with pytest.raises(AssertionError):
        assert_fills_with_draws()


NEXT, SCORED, TURNS = MultiTurn.next_view, MultiTurn.scored_with_tokens, MultiTurn._turns


def _answers(self, view, batch, scores, uniform):
    return NEXT(self, view, batch, replace(scores, best=batch.tokens[view.maskable]), uniform)


def _fills_all(self, view, batch, scores, uniform):
    return NEXT(self, view, batch, scores, uniform * 0)


def _fills_none(self, view, batch, scores, uniform):
    return NEXT(self, view, batch, scores, uniform * 0 + 1)


def _writes_the_prompt(self, view, batch, scores, uniform):
    later = NEXT(self, view, batch, scores, uniform)
    return replace(later, tokens=torch.where(view.maskable, later.tokens, (later.tokens + 1) % 11))


def _trusts_the_draft(self, view, batch, scores, uniform):
    later = NEXT(self, view, batch, scores, uniform)
    return replace(later, t2t=torch.zeros_like(later.t2t))


def _old_weights(self, view, batch, scores, uniform):
    return replace(NEXT(self, view, batch, scores, uniform), elbo=view.elbo)


def _gradient_through_a_draft(self, model, given, block, normaliser):
    report, scores = SCORED(self, model, given, block, normaliser)
    one = model.head().norm() / model.head().norm().detach()
    return replace(report, total=report.total * one), scores


def _last_turn_only(self, model, given, block, drawn):
    return list(TURNS(self, model, given, block, drawn))[-1:]


def _best_for_drawn(self, view, batch, scores, uniform):
    return NEXT(self, view, batch, replace(scores, drawn=None), uniform)


def _edits_with_draws(self, view, batch, scores, uniform):
    return NEXT(self, view, batch, replace(scores, best=scores.drawn), uniform)


@pytest.mark.parametrize(
    ("check", "name", "fault"),
    [
        (assert_fills_with_draws, "next_view", _best_for_drawn),
        (assert_fills_with_draws, "next_view", _edits_with_draws),
        (assert_fills_with_best, "next_view", _answers),
        (assert_fills_with_best, "next_view", _fills_all),
        (assert_fills_all_or_none, "next_view", _fills_none),
        (assert_edits_visible_only, "next_view", _writes_the_prompt),
        (assert_edits_visible_only, "next_view", _answers),
        (assert_mean_of_turns, "next_view", _trusts_the_draft),
        (assert_mean_of_turns, "_turns", _last_turn_only),
        (assert_gradient_of_fixed_inputs, "scored_with_tokens", _gradient_through_a_draft),
        (assert_gradient_of_fixed_inputs, "_turns", _last_turn_only),
        (assert_later_weights_have_mean_one, "next_view", _old_weights),
        (assert_later_weights_have_mean_one, "next_view", _fills_none),
    ],
)
def test_a_planted_fault_fails_the_check_that_guards_against_it(check, name, fault, monkeypatch):
    monkeypatch.setattr(MultiTurn, name, fault)
    with pytest.raises(AssertionError):
        check()
