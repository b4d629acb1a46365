# Objective distill against dense logits position by position, its gradient by autograd, and faults planted in it.
# Entry points: pytest.
# The oracle reads every document by itself, causally, and takes the logits one position earlier; it shares no code with
# the objective but the drawn views. The real parent is that of transformers.
"""Tests of objectives/distill.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from core.recorder import build, example, rng
from core.stand_ins import LayerModel, batch_of
from torch import Tensor
from transformers import AutoModelForCausalLM

import hildanext
from hildanext.config.model import AdapterConfig
from hildanext.core.noise import Corruption
from hildanext.core.objectives import distill
from hildanext.core.objectives.distill import Distill
from hildanext.core.types import About, Batch
from hildanext.errors import ConfigError
from hildanext.models.load import place
from hildanext.models.lora import add_adapter

NOISE = {"replace": 0.4, "may_draw_original": False}
KL, PRIOR = distill.weighted_kl, Distill.prior


class Asked(LayerModel):
    """A teacher that keeps the rows it was asked to read."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.requires_grad_(False)
        self.rows: list[int] = []

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        self.rows.append(len(batch.tokens))
        return super().causal_features(batch, select)


def about(teacher: Any, origin: str = "models/parent", parent: Any = None) -> About:
    return About(11, (), torch.device("cpu"), lambda path: teacher, parent, origin)


def prepared(teacher: Any, **fields: Any) -> Distill:
    return build("distill", noise=NOISE, **fields).prepare(about(teacher))


def taught(teacher: LayerModel, batch: Batch) -> Tensor:
    """[B, L, V - 1] logits for each position, from the one before it in a pass over its document alone; NaN: none."""
    found = torch.full((*batch.tokens.shape, teacher.mask_id), torch.nan, dtype=torch.float64)
    for row in range(len(batch.tokens)):
        for doc in batch.docs[row].unique():
            at = (batch.docs[row] == doc).nonzero()[:, 0]
            piece, seen = batch_of(batch.tokens[row, at][None]), torch.ones(1, 1, len(at), len(at)).tril().bool()
            states = teacher.body(piece.tokens, piece.positions(), seen)[0]
            found[row, at[1:]] = (states @ teacher.head().T)[:-1, : teacher.mask_id]
    return found


def divergence(hers: Tensor, ours: Tensor, fields: dict[str, Any]) -> Tensor:
    """The plain formula on two rows of logits."""
    heat, kept = fields.get("temperature", 1.0), hers.topk(fields.get("top_k") or len(hers)).indices
    q, p = (hers[kept] / heat).softmax(0), (ours[kept] / heat).softmax(0)
    one, other = (p, q) if fields.get("direction") == "reverse" else (q, p)
    return heat**2 * (one * (one.log() - other.log())).sum()


def by_hand(
    models: tuple[LayerModel, LayerModel], batch: Batch, views: tuple[Corruption, ...], fields: dict[str, Any]
) -> Tensor:
    """The numerator at block 4, one position at a time."""
    student, teacher = models
    hers, total = taught(teacher, batch), torch.zeros((), dtype=torch.float64)
    factor = {"m2t_weight": 0.5, "kl_weight": 0.5, "t2t_weight": 1.0, "keep_weight": 1.0} | fields
    for view in views:
        every = torch.ones_like(batch.learn)
        ours = student.noisy_features(view.tokens, batch, 4, every) @ student.head().T
        ours = ours.view(*batch.tokens.shape, -1)[..., : student.mask_id]
        for row, at in batch.learn.nonzero().tolist():
            nll = -ours[row, at].log_softmax(0)[batch.tokens[row, at]]
            if int(view.tokens[row, at]) != student.mask_id:
                wrong = view.tokens[row, at] != batch.tokens[row, at]
                total = total + factor["t2t_weight" if wrong else "keep_weight"] * nll / len(views)
                continue
            first = bool(hers[row, at].isnan().any())
            away = nll if first else divergence(hers[row, at], ours[row, at], fields)
            weight = float(view.elbo[row, at]) / len(views)
            total = total + weight * (factor["m2t_weight"] * nll + factor["kl_weight"] * away)
    return total


FIELDS: list[dict[str, Any]] = [
    {}, {"direction": "reverse", "temperature": 2.0}, {"top_k": 3, "kl_weight": 2.0, "temperature": 0.5},
    {"m2t_weight": 0.0, "direction": "reverse", "top_k": 4, "keep_weight": 0.0}, {"complementary": True},
]  # fmt: skip


def assert_is_by_hand(fields: dict[str, Any]) -> None:
    """Numerator and gradient; every masked position has a teacher but the documents' first ones."""
    fields = dict(fields)
    noise = NOISE | {"complementary": fields.pop("complementary", False)}
    student, teacher, batch = LayerModel(seed=1), Asked(seed=2), example()
    objective = build("distill", noise=noise, **fields).prepare(about(teacher))
    report = objective.loss(student, batch, 4, rng())
    views = objective.views(student, batch, 4, rng())
    wanted = by_hand((student, teacher), batch, views, fields)
    assert float(report.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    weights = list(student.weights.values())
    found = torch.autograd.grad(report.total, weights)
    for one, other in zip(found, torch.autograd.grad(wanted, weights), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    masked = sum(int((view.m2t & (batch.positions() > 0)).sum()) for view in views)
    assert float(report.counts["kl"]) == masked > 8 and teacher.rows == [4]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ",".join(fields) or "default")
def test_the_loss_and_its_gradient_are_those_of_dense_logits(fields: dict[str, Any]) -> None:
    assert_is_by_hand(fields)


def _unshifted(self: Distill, model: Any, batch: Batch, views: Any) -> Any:
    asked = views[0].m2t & (batch.positions() > 0)
    seen = torch.ones(asked.shape[1], asked.shape[1]).tril().bool() & (batch.docs[:, :, None] == batch.docs[:, None, :])
    states = self._teacher.body(batch.tokens, batch.positions(), seen[:, None])
    return replace(PRIOR(self, model, batch, views), features=states[asked])


def _documents_joined(self: Distill, model: Any, batch: Batch, views: Any) -> Any:
    one = replace(batch, docs=batch.docs * 0)
    made = PRIOR(self, model, one, views)
    place = (views[0].m2t & (one.positions() > 0)).flatten().cumsum(0) - 1
    return replace(made, place=place.view(batch.tokens.shape))


def _noisy_text(self: Distill, model: Any, batch: Batch, views: Any) -> Any:
    return PRIOR(self, model, replace(batch, tokens=views[0].tokens), views)


def _turned(features: Tensor, weight: Tensor, teacher: Any, weights: Tensor) -> Any:
    return KL(features, weight, replace(teacher, reverse=not teacher.reverse), weights)


def _weightless(features: Tensor, weight: Tensor, teacher: Any, weights: Tensor) -> Any:
    return KL(features, weight, teacher, torch.full_like(weights, 0.5))


def _mask_is_text(features: Tensor, weight: Tensor, teacher: Any, weights: Tensor) -> Any:
    return KL(features, weight, replace(teacher, exclude=None), weights)


FAULTS: dict[str, tuple[Any, ...]] = {
    "logits of the position itself": (Distill, "prior", _unshifted),
    "documents see each other": (Distill, "prior", _documents_joined),
    "the teacher reads the noisy text": (Distill, "prior", _noisy_text),
    "the other direction": (distill, "weighted_kl", _turned),
    "no weight of the mask rate": (distill, "weighted_kl", _weightless),
    "mask has a probability": (distill, "weighted_kl", _mask_is_text),
    "first tokens lose their weight": (Distill, "weights", super(Distill, Distill).weights),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_teacher_or_weight_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(AssertionError):
        assert_is_by_hand({})


def assert_mask_and_edit(**fields: Any) -> None:
    for noise in (NOISE, NOISE | {"complementary": True}):
        student, batch = LayerModel(), example(rows=8)
        plain = build("mask_and_edit", noise=noise, m2t_weight=0.7).loss(student, batch, 4, rng())
        same = build("distill", noise=noise, m2t_weight=0.7, **fields).prepare(about(student, ""))
        report = same.loss(student, batch, 4, rng())
        assert torch.equal(report.total, plain.total) and report.parts.keys() == plain.parts.keys()


def test_without_kl_it_is_mask_and_edit_to_the_bit_and_needs_no_parent() -> None:
    assert_mask_and_edit(kl_weight=0.0)
    assert not build("distill", kl_weight=0.0, parent="models/p").companions
    with pytest.raises((AssertionError, ConfigError)):
        assert_mask_and_edit(kl_weight=1e-9)


def test_a_model_that_is_no_ar_parent_is_refused_and_so_is_one_of_another_vocabulary() -> None:
    with pytest.raises(ConfigError, match=r"objective\.parent: none is named.*set objective\.parent"):
        build("distill").prepare(about(LayerModel(), ""))
    assert build("distill", parent="models/p").companions == ("models/p",)
    assert build("distill").compares_with_origin and not build("distill", parent="models/p").compares_with_origin
    with pytest.raises(ConfigError, match="has 13 rows, the model's 12"):
        prepared(LayerModel(vocabulary=13)).loss(LayerModel(), example(), 4, rng())


CHATS = ([{"role": "user", "content": "Write a story about Lily and a fox."}], "Lily met a fox. They ran.")
Way = Callable[[Any], tuple[Any, dict[str, Any]]]


def packed(model: Any) -> Batch:
    """A prompt with a reply that is learned with its end of turn, and a text, in one row."""
    words = model.tokenizer
    prompt = words.apply_chat_template(CHATS[0], add_generation_prompt=True, return_dict=False)
    reply = words(CHATS[1], add_special_tokens=False)["input_ids"] + [words.eos_token_id]
    other = words("Tom had a red ball.", add_special_tokens=False)["input_ids"]
    ids, length = [*prompt, *reply, *other], len(prompt) + len(reply)
    ids += [words.eos_token_id] * (-len(ids) % 8)
    learn, docs = torch.ones(1, len(ids)).bool(), torch.zeros(1, len(ids)).long()
    learn[0, : len(prompt)], docs[0, length:] = False, 1
    return batch_of(torch.tensor([ids]), learn, docs)


def text_logs(logits: Tensor, mask_id: int) -> Tensor:
    return torch.cat([logits[:, :mask_id], logits[:, mask_id + 1 :]], dim=1).log_softmax(dim=1)


def log_probabilities(batch: Batch, mask_id: int) -> Tensor:
    """[L, V - 1] of the parent as transformers reads each document; row i predicts token i, NaN where nothing does."""
    parent = AutoModelForCausalLM.from_pretrained(place("tiny-parent"), dtype=torch.float32).eval()
    found = torch.full((batch.tokens.shape[1], parent.config.vocab_size - 1), torch.nan)
    with torch.no_grad():
        for doc in batch.docs[0].unique():
            at = (batch.docs[0] == doc).nonzero()[:, 0]
            found[at[1:]] = text_logs(parent(batch.tokens[:, at]).logits[0, :-1], mask_id)
    return found


def assert_teacher_is_the_parent(model: Any, objective: Distill, known: About) -> None:
    batch = packed(model)
    objective = objective.prepare(known)
    (view,) = objective.views(model.denoiser, batch, 8, rng())
    report = objective.loss(model.denoiser, batch, 8, rng())
    hers = log_probabilities(batch, model.denoiser.mask_id)
    at = view.m2t & (batch.positions() > 0)
    with torch.no_grad():
        logits = model.denoiser.noisy_features(view.tokens, batch, 8, at) @ model.denoiser.head().T
    ours, wanted = text_logs(logits, model.denoiser.mask_id), hers[at[0]]
    by_transformers = (wanted.exp() * (wanted - ours)).sum()
    assert float(report.counts["kl"]) == int(at.sum()) > 8
    assert float(report.parts["kl"]) == pytest.approx(float(by_transformers), rel=1e-4)


def _child() -> tuple[Any, Distill, About]:
    model = hildanext.load("tiny")
    copy = hildanext.load("tiny-parent").denoiser
    return model, build("distill", parent="tiny-parent"), about(copy, "")


def _adapted() -> tuple[Any, Distill, About]:
    from hildanext.models.about import about as known

    pytest.importorskip("peft")
    model = hildanext.load("tiny-parent")
    for parameter in add_adapter(model.denoiser, AdapterConfig(kind="lora", rank=2, dropout=0.5)):
        parameter.data += 0.05
    model.denoiser.train()
    section = model.config.model.model_copy(update={"path": "tiny-parent"})
    made = known(model.loaded, section)
    return model, build("distill"), replace(made, load=lambda path: pytest.fail(f"loads {path}"))


def test_the_teacher_is_the_ar_model_of_transformers_as_a_frozen_copy_and_with_adapters_off() -> None:
    assert_teacher_is_the_parent(*_child())
    model, objective, known = _adapted()
    model.denoiser.eval()
    assert_teacher_is_the_parent(model, objective, known)
    with pytest.raises(AssertionError):
        assert_teacher_is_the_parent(model, objective, replace(known, parent=nullcontext))


def test_adapters_off_reads_as_in_evaluation_and_leaves_training_mode() -> None:
    model, objective, known = _adapted()
    batch = packed(model)
    select = batch.learn & (batch.positions() > 0)
    with torch.no_grad(), known.parent():
        assert not model.denoiser.model.training
        hers = model.denoiser.causal_features(batch, select) @ model.denoiser.head().T
    assert model.denoiser.model.training
    wanted = log_probabilities(batch, model.denoiser.mask_id)[select[0]]
    torch.testing.assert_close(text_logs(hers, model.denoiser.mask_id), wanted, atol=1e-4, rtol=1e-4)


END = 3


def ended() -> Batch:
    """Rows that end with END at positions 5 to 12, learned up to and with it."""
    tokens = torch.randint(4, 11, (32, 16), generator=rng(3))
    last = torch.arange(32) % 8 + 5
    place_of = torch.arange(16)[None]
    tokens[place_of == last[:, None]] = END
    docs = (place_of > last[:, None]).long()
    return batch_of(tokens, docs == 0, docs, tuple(range(32)))


class Ending(LayerModel):
    """A parent that is sure of the end where the text ends, and of nothing else."""

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        wanted = torch.zeros(int(select.sum()), 12, dtype=torch.float64)
        wanted[batch.tokens[select] == END, END] = 8.0
        return wanted

    def head(self) -> Tensor:
        return torch.eye(12, dtype=torch.float64)


def probability_of_the_end(batch: Batch) -> float:
    """Mean probability of END where the text ends, all of the block masked, after 40 steps on the KL alone."""
    student, told = LayerModel(seed=1), ended()
    objective = build("distill", m2t_weight=0.0, keep_weight=0.0, noise={"replace": 0.0}).prepare(about(Ending()))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for step in range(40):
        report = objective.loss(student, batch, 4, rng(step))
        (report.total / report.normaliser).backward()
        optimizer.step()
        optimizer.zero_grad()
    at = told.learn & (told.tokens == END)
    noisy = torch.where(told.learn, student.mask_id, told.tokens)
    with torch.no_grad():
        logits = student.noisy_features(noisy, told, 4, at) @ student.head().T
    return float(logits.softmax(1)[:, END].mean())


def test_the_end_of_turn_is_learned_from_the_parent() -> None:
    told = ended()
    assert probability_of_the_end(told) > 0.2
    without = replace(told, learn=told.learn & (told.tokens != END))
    assert probability_of_the_end(without) < 0.1
