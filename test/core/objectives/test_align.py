# Objective align against hidden states that transformers gives, position by position, and faults planted in it.
# Entry points: pytest.
# Student and parent are the bundled parent and a disturbed copy of it; the oracle makes its own mask and its own loops.
"""Tests of objectives/align.py."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from core.recorder import build, rng
from torch import Tensor

from hildanext.config.model import AdapterConfig, ModelConfig
from hildanext.core.batches import document_batch
from hildanext.core.masks import additive, block_diffusion_mask
from hildanext.core.objectives import align
from hildanext.core.types import About, Batch
from hildanext.errors import ConfigError, ModelError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.layers import layer_list, watching
from hildanext.models.load import load_model
from hildanext.models.lora import add_adapter
from hildanext.models.support import recompute

BLOCK = 4
OVER = {"type": "mask_and_edit", "noise": {"replace": 0.2, "may_draw_original": False}}


@pytest.fixture(scope="module")
def pair() -> tuple[HFDenoiser, HFDenoiser]:
    parent: Any = load_model(ModelConfig(path="tiny-parent", device="cpu")).denoiser
    student, noise = copy.deepcopy(parent), torch.Generator().manual_seed(0)
    student.attention = parent.attention = "dense"
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=noise))
    return student, parent.requires_grad_(False)


@pytest.fixture(scope="module")
def batch() -> Batch:
    ids = torch.randint(5, 900, (2, 16), generator=rng(3)).tolist()
    return document_batch([(ids[0], 0), (ids[1][:13], 5)], 0, 8, ids=(7, 9))


def about(parent: Any, layers: int = 4, context: Any = None) -> About:
    @contextmanager
    def watch(model: Any, numbers: Any) -> Any:
        with model.whole(), watching(model.model, numbers) as found:
            yield found

    return About(900, (), torch.device("cpu"), lambda path: parent, context, "models/parent", layers, watch, no_rows)


def no_rows(kind: str, folder: str, model: str) -> Any:
    raise AssertionError("nothing is on disk here")


def prepared(parent: HFDenoiser, **fields: Any) -> align.Align:
    made: align.Align = build("align", over=OVER, **fields).prepare(about(parent, len(layer_list(parent.model))))
    return made


def states_of(model: HFDenoiser, tokens: Tensor, positions: Tensor, mask: Tensor) -> list[Tensor]:
    """Outputs of the layers as transformers hands them out; the last one has the final norm, so nobody asks for it."""
    found = model.model(
        input_ids=tokens, position_ids=positions, attention_mask=additive(mask, torch.float32),
        output_hidden_states=True, use_cache=False,
    ).hidden_states  # fmt: skip
    return list(found)


def distances_by_hand(
    models: tuple[HFDenoiser, HFDenoiser], batch: Batch, noisy: Tensor, positions: str, margin: float = 0.0
) -> dict[int, list[Tensor]]:
    """For each of layers 1 to 3, the distances at the compared positions, in order of rows."""
    (student, parent), length = models, batch.tokens.shape[1]
    places = batch.positions()
    both = torch.cat([noisy, batch.tokens], 1), torch.cat([places, places], 1)
    ours = states_of(student, *both, block_diffusion_mask(length, BLOCK, batch.docs))
    causal = (batch.docs[:, :, None] == batch.docs[:, None, :]) & torch.ones(length, length).tril().bool()
    theirs = states_of(parent, batch.tokens, places, causal[:, None])
    found: dict[int, list[Tensor]] = {1: [], 2: [], 3: []}
    for row, at in batch.learn.nonzero().tolist():
        masked, same = noisy[row, at] == student.mask_id, noisy[row, at] == batch.tokens[row, at]
        hers = at - 1 if positions == "predicts_masked" else at
        if positions == "predicts_masked" and (not masked or at == 0) or positions == "visible" and not same:
            continue
        for number in found:
            one, other = ours[number][row, at], theirs[number][row, hers]
            angle = torch.arccos(((one @ other) / one.norm() / other.norm()).clamp(-1 + 1e-7, 1 - 1e-7))
            found[number].append(1 - torch.cos((angle - margin).clamp(min=0)))
    return found


def assert_is_by_hand(models: tuple[HFDenoiser, HFDenoiser], batch: Batch, positions: str, margin: float) -> None:
    student, parent = models
    fields: dict[str, Any] = {"positions": positions, "margin": margin, "layers": (1, 2, 3), "weight": 2.0}
    objective = prepared(parent, **fields)
    (view,) = objective._inner.views(student, batch, BLOCK, rng())
    wanted = distances_by_hand(models, batch, view.tokens, positions, margin)
    plain, made = objective._inner.loss(student, batch, BLOCK, rng()), objective.loss(student, batch, BLOCK, rng())
    term = torch.stack([torch.stack(each) for each in wanted.values()]).mean(dim=0).sum()
    assert float(made.total.detach()) == pytest.approx(float(plain.total.detach() + 2.0 * term.detach()), rel=1e-4)
    assert float(made.parts["align"]) == pytest.approx(float(term.detach()), rel=2e-3, abs=1e-5)
    assert int(made.counts["align"]) == len(wanted[1]) > 3 and torch.equal(made.normaliser, plain.normaliser)


@pytest.mark.parametrize(("positions", "margin"), [("visible", 0.0), ("predicts_masked", 0.0), ("all", 0.2)])
def test_the_term_is_that_of_hidden_states_by_hand(pair: Any, batch: Batch, positions: str, margin: float) -> None:
    assert_is_by_hand(pair, batch, positions, margin)


def _noisy_parent(self: align.Align, model: Any, given: Batch, layers: Any) -> Any:
    return STATES(self, model, replace(given, tokens=given.tokens.flip(1)), layers)


def _next_layer(self: align.Align, model: Any, given: Batch, layers: Any) -> Any:
    found = STATES(self, model, given, tuple(number + 1 for number in layers))
    return {number - 1: state for number, state in found.items()}


def _unshifted(self: align.Align, *given: Any) -> Any:
    return COMPARED(self, *given)[0], (False, False)


def _everywhere(self: align.Align, noisy: Tensor, given: Batch, block: int, model: Any) -> Any:
    return given.learn & (given.positions() > 0), COMPARED(self, noisy, given, block, model)[1]


STATES, COMPARED = align.Align._states, align.Align.compared


@pytest.mark.parametrize(
    ("name", "fault"),
    [("_states", _noisy_parent), ("_states", _next_layer), ("compared", _unshifted), ("compared", _everywhere)],
)
def test_a_planted_fault_is_seen(
    pair: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch, name: str, fault: Any
) -> None:
    monkeypatch.setattr(align.Align, name, fault)
    with pytest.raises(AssertionError):
        assert_is_by_hand(pair, batch, "predicts_masked", 0.0)


def sampled_means(pair: Any, batch: Batch, draws: int) -> tuple[float, Tensor]:
    """(the whole term, the terms of so many draws of positions) with the share 0.3, from one pair of forwards."""
    student, parent = pair
    objective = prepared(parent, layers=(1, 2), positions="all", sample_positions=0.3)
    whole = prepared(parent, layers=(1, 2), positions="all")
    hers = objective._states(student, batch, (1, 2))
    with torch.no_grad(), student.whole(), watching(student.model, (1, 2)) as states:
        student.noisy_features(batch.tokens, batch, BLOCK, batch.learn)
    seen = align._Seen(batch.tokens, batch, BLOCK, dict(states))
    plain = objective._inner.loss(student, batch, BLOCK, rng())
    zero = replace(plain, total=plain.total.detach() * 0)
    drawn = torch.rand(draws, *batch.tokens.shape, generator=rng(5), dtype=torch.float64)
    found = [float(objective._aligned(zero, seen, hers, one, student, 1).total) for one in drawn]
    return float(whole._aligned(zero, seen, hers, drawn[0], student, 1).total), torch.tensor(found)


def assert_unbiased(whole: float, found: Tensor) -> None:
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - whole) < 4 * error < 0.1 * whole


def test_the_mean_over_draws_of_positions_is_the_whole_term(pair: Any, batch: Batch) -> None:
    assert_unbiased(*sampled_means(pair, batch, 600))


def test_draws_that_are_not_weighed_up_are_seen(pair: Any, batch: Batch) -> None:
    whole, found = sampled_means(pair, batch, 600)
    with pytest.raises(AssertionError):
        assert_unbiased(whole, 0.3 * found)


def test_the_mean_over_draws_of_layers_is_the_whole_term(
    pair: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, parent = pair
    whole = float(prepared(parent, layers=(1, 2, 3)).loss(student, batch, BLOCK, rng()).total.detach())
    objective, terms = prepared(parent, layers=(1, 2, 3), sample_layers=2), []
    for kept in ((1, 2), (1, 3), (2, 3)):
        monkeypatch.setattr(align.Align, "drawn", lambda self, rng, kept=kept: kept)
        terms.append(float(objective.loss(student, batch, BLOCK, rng()).total.detach()))
    assert sum(terms) / 3 == pytest.approx(whole, rel=1e-6)


def test_each_layer_is_drawn_as_often_as_any_other(pair: Any) -> None:
    objective = prepared(pair[1], layers=(1, 2, 3, 4), sample_layers=2)
    counts = torch.zeros(5)
    for seed in range(600):
        counts[list(objective.drawn(rng(seed)))] += 1
    assert counts[1:].sum() == 1200 and float((counts[1:] - 300).abs().max()) < 60


def test_without_weight_it_is_the_other_objective_to_the_bit_and_with_it_the_masks_are_the_same(
    pair: Any, batch: Batch
) -> None:
    student, parent = pair
    plain = build("mask_and_edit", **{k: v for k, v in OVER.items() if k != "type"}).prepare(about(parent))
    one, other = (objective.loss(student, batch, BLOCK, rng()) for objective in (plain, prepared(parent, weight=0.0)))
    assert torch.equal(one.total, other.total) and one.parts.keys() == other.parts.keys()
    aligned = prepared(parent).loss(student, batch, BLOCK, rng())
    assert float(aligned.parts["m2t"]) == pytest.approx(float(one.parts["m2t"]), rel=1e-6)


def test_the_weight_falls_linearly(pair: Any, batch: Batch) -> None:
    student, parent = pair
    objective = prepared(parent, weight=4.0, weight_last=0.0, layers=(2,))
    totals = [objective.at(done).loss(student, batch, BLOCK, rng()).total.detach() for done in (0.0, 0.25, 0.5, 1.0)]
    terms = [float(total - totals[-1]) for total in totals[:3]]
    assert terms == pytest.approx([terms[0], 0.75 * terms[0], 0.5 * terms[0]], rel=1e-3)


def gradients(student: HFDenoiser, objective: align.Align, batch: Batch) -> list[Tensor]:
    student.zero_grad()
    objective.loss(student, batch, BLOCK, rng()).total.backward()
    return [weight.grad.clone() for weight in student.parameters() if weight.grad is not None]


def test_gradient_checkpointing_stays_on_and_changes_no_gradient(pair: Any, batch: Batch) -> None:
    student, parent = copy.deepcopy(pair[0]).train(), pair[1]
    objective = prepared(parent, weight=5.0)
    wanted, forwards = gradients(student, objective, batch), list[int]()
    recompute(student.model)
    layer_list(student.model)[1].mlp.register_forward_pre_hook(lambda *given: forwards.append(1))
    for one, other in zip(wanted, gradients(student, objective, batch), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert len(forwards) == 2
    with torch.no_grad():
        assert not all(
            torch.equal(a, b) for a, b in zip(wanted, gradients_without(student, parent, batch), strict=True)
        )


@torch.enable_grad()
def gradients_without(student: HFDenoiser, parent: HFDenoiser, batch: Batch) -> list[Tensor]:
    return gradients(student, prepared(parent, weight=0.0), batch)


def test_adapters_off_are_the_frozen_parent(pair: Any, batch: Batch) -> None:
    pytest.importorskip("peft")
    from hildanext.models.about import _without_adapters

    student = copy.deepcopy(pair[1])
    for weight in add_adapter(student, AdapterConfig(kind="lora", rank=2)):
        with torch.no_grad():
            weight.add_(0.1 * torch.randn(weight.shape, generator=rng(1)))
    context = partial(_without_adapters, student.model)
    live = build("align", over=OVER).prepare(about(None, 4, context))
    copied = build("align", over=OVER).prepare(about(pair[1], 4))
    one, other = (each.loss(student, batch, BLOCK, rng()) for each in (live, copied))
    assert float(one.parts["align"]) == pytest.approx(float(other.parts["align"]), rel=1e-5)
    assert float(one.parts["align"]) > 0.01


def test_what_cannot_be_had_is_said_in_one_line(pair: Any) -> None:
    nothing = About(900, (), torch.device("cpu"), lambda path: pair[1])
    with pytest.raises(ConfigError, match="no layers whose outputs"):
        build("align").prepare(nothing)
    with pytest.raises(ConfigError, match="name a diffusion objective"):
        build("align", over={"type": "autoregressive"})
    with pytest.raises(ConfigError, match="did you mean .keep_weight"):
        build("align", over={"type": "mask_and_edit", "kep_weight": 1})
    with pytest.raises(ConfigError, match=r"objective\.layers: \[9\]; there are 1 to 4"):
        build("align", layers=(9,)).prepare(about(pair[1]))
    with pytest.raises(ConfigError, match=r"objective\.parent: none is named"):
        build("align").prepare(replace(about(pair[1]), origin=""))
    with pytest.raises(ModelError, match="no layer 9"), watching(pair[1].model, (9,)):
        nullcontext()
