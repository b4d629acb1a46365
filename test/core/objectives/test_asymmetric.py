# A teacher that sees more: the loss by a literal loop over what both were asked, its gradient, and a planted fault.
# Entry points: pytest.
# The recorder keeps every input, so that the loss can be computed again position by position.
"""Tests of core/objectives/asymmetric.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from core.recorder import Recorder, build, example, rng
from core.stand_ins import LayerModel

from hildanext.core.objectives import asymmetric
from hildanext.errors import ConfigError

BLOCK = 4
NOISE = {"group": 3, "replace": 0.0}


def check_the_loop(top_k: int = 0) -> None:
    model, batch = Recorder(), example()
    objective = build("asymmetric", noise=NOISE, kl_weight=0.8, m2t_weight=0.3, keep_weight=0.0, top_k=top_k)
    report = objective.loss(model, batch, BLOCK, rng())
    (taught, alone, asked), (noisy, grouped, _) = model.asked
    assert torch.equal(taught, noisy) and alone.groups is None and grouped.groups is not None
    hidden = noisy == model.mask_id
    assert torch.equal(asked, hidden)
    teacher, student = (model.logits(turn, BLOCK).log_softmax(-1) for turn in (0, 1))
    plain = build("mask_and_edit", noise=NOISE, keep_weight=0.0, weighting="uniform")
    weights = plain.weights(plain.views(model, grouped, BLOCK, after_groups())[0], grouped)
    total, divergences = 0.0, 0.0
    for row, i in hidden.nonzero().tolist():
        ids = teacher[row, i].topk(top_k).indices if top_k else torch.arange(teacher.shape[-1])
        p, q = teacher[row, i][ids].log_softmax(0), student[row, i][ids].log_softmax(0)
        kl = float((p.exp() * (p - q)).sum())
        divergences += kl
        total += float(weights[row, i]) * (0.8 * kl - 0.3 * float(student[row, i, batch.tokens[row, i]]))
    assert float(report.total.detach()) == pytest.approx(total, abs=1e-4) and divergences > 0
    assert float(report.parts["kl"]) == pytest.approx(divergences, abs=1e-4)
    assert int(report.counts["kl"]) == int(hidden.sum())


def after_groups() -> torch.Generator:
    """The generator as it is once the groups are drawn."""
    made = rng()
    torch.randint(2**62, (), generator=made)
    return made


@pytest.mark.parametrize("top_k", [0, 3])
def test_the_loss_is_cross_entropy_and_the_divergence_from_the_model_that_sees_clean_text(top_k: int) -> None:
    check_the_loop(top_k)


def test_a_planted_teacher_that_sees_the_same_groups_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        asymmetric, "replace", lambda one, **changes: one if "groups" in changes else replace(one, **changes)
    )
    with pytest.raises(AssertionError):
        check_the_loop()


def test_no_gradient_reaches_the_teacher() -> None:
    model, batch = Recorder(), example()
    objective = build("asymmetric", noise=NOISE, m2t_weight=0.0, keep_weight=0.0)
    report = objective.loss(model, batch, BLOCK, rng())
    found = torch.autograd.grad(report.total, list(model.parameters()))
    (noisy, alone, hidden), (_, grouped, _) = model.asked
    with torch.no_grad():
        teacher = LayerModel.noisy_features(model, noisy, alone, BLOCK, hidden) @ model.head()[: model.mask_id].T
    student = LayerModel.noisy_features(model, noisy, grouped, BLOCK, hidden) @ model.head()[: model.mask_id].T
    plain = build("mask_and_edit", noise=NOISE, m2t_weight=0.5, keep_weight=0.0, weighting="uniform")
    weights = plain.weights(plain.views(model, grouped, BLOCK, after_groups())[0], grouped)[hidden]
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    total = (weights * (p.exp() * (p - q)).sum(-1)).sum()
    for one, other in zip(found, torch.autograd.grad(total, list(model.parameters())), strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=1e-5, rtol=1e-5)


def test_without_its_weight_it_is_mask_and_edit_in_groups_to_the_bit() -> None:
    made = build("asymmetric", noise=NOISE, kl_weight=0.0).loss(Recorder(), example(), BLOCK, rng())
    plain = build("mask_and_edit", noise=NOISE, m2t_weight=0.5, weighting="uniform").loss(
        Recorder(), example(), BLOCK, rng()
    )
    assert torch.equal(made.total, plain.total) and made.parts.keys() == plain.parts.keys()


def test_another_teacher_is_read_in_its_place_and_one_of_other_words_is_refused() -> None:
    teacher, about = Recorder(), example()
    objective: Any = build("asymmetric", noise=NOISE, teacher="models/other")
    assert objective.companions == ("models/other",)
    objective._teacher = teacher
    model = Recorder()
    objective.loss(model, about, BLOCK, rng())
    assert len(model.asked) == len(teacher.asked) == 1 and teacher.asked[0][1].groups is None
    teacher.head = lambda: torch.zeros(5, 3)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"objective\.teacher: its output matrix has 5 rows"):
        objective.loss(Recorder(), about, BLOCK, rng())


def test_it_is_for_groups_and_says_what_it_costs() -> None:
    assert build("asymmetric", noise={"replace": 0.0}).noise.group == 4
    with pytest.raises(Exception, match="give group of 2 or more"):
        build("asymmetric", noise={"group": 1})
    objective = build("asymmetric", autoregressive=0.1)
    assert [(one.drafts, one.reads) for one in objective.passes] == [(1, 1), (0, 0)]
    assert len(list(objective.losses(Recorder(), example(), BLOCK, rng()))) == 2
