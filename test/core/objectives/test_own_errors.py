# The model's own errors: both losses by a literal loop, drafts in evaluation mode and without a gradient.
# Entry points: pytest.
# The recorder keeps every input, so that the loss can be computed again from what the model was asked.
"""Tests of core/objectives/own_errors.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core.recorder import Recorder, build, example, rng
from core.stand_ins import LayerModel
from torch import Tensor

from hildanext.core.objectives import own_errors

BLOCK = 4


class Watched(Recorder):
    """A Recorder that keeps whether a gradient was asked for, and the mode; in training its features are other ones."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[tuple[bool, bool]] = []

    def noisy_features(self, noisy: Tensor, batch: Any, block: int, select: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        found = super().noisy_features(noisy, batch, block, select)
        return found.flip(-1) if self.training else found


def run(model: Recorder, **fields: Any) -> tuple[Any, list[Tensor]]:
    report = build("own_errors", **fields).loss(model, example(), BLOCK, rng())
    return report, [noisy for noisy, _, _ in model.asked]


def check_the_loop(group: int = 1) -> None:
    model, batch = Recorder(), example()
    report, (drafting, masked, drafted) = run(model, noise={"group": group} if group > 1 else {})
    assert torch.equal(drafting, masked)
    hidden = masked == model.mask_id
    for row in range(len(masked)):
        for at in (batch.learn[row] & (batch.docs[row] == doc) for doc in range(3)):
            count = int(at.sum())
            assert not count or 0.5 <= int(hidden[row][at].sum()) / count <= 1.0
    best = model.logits(0, BLOCK).argmax(-1)
    assert torch.equal(drafted, torch.where(hidden, best, batch.tokens))
    total = 0.0
    for turn in (1, 2):
        nll = -model.logits(turn, BLOCK).log_softmax(-1)
        for row, i in hidden.nonzero().tolist():
            total += float(nll[row, i, batch.tokens[row, i]]) / 2
    assert abs(float(report.total.detach()) - total) < 1e-4 and int(report.normaliser) == int(hidden.sum())
    wrong = hidden & (best != batch.tokens)
    counts = {name: int(report.counts[name]) for name in ("m2t", "t2t", "keep")}
    assert counts == {"m2t": int(hidden.sum()), "t2t": int(wrong.sum()), "keep": int((hidden & ~wrong).sum())}
    assert counts["t2t"] > 0


@pytest.mark.parametrize("group", [1, 2])
def test_the_loss_is_that_of_the_masked_and_of_the_drafted_text_at_the_masked_positions(group: int) -> None:
    check_the_loop(group)


def test_drafts_are_made_in_evaluation_mode_without_a_gradient_and_training_goes_on() -> None:
    model = Watched()
    model.train()
    run(model)
    assert model.modes == [(False, False), (True, True), (True, True)] and model.training
    model.eval()
    run(model)
    assert model.modes[3:] == [(False, False), (False, True), (False, True)] and not model.training


def test_the_gradient_is_that_of_fixed_inputs() -> None:
    model, batch = Recorder(), example()
    report, (_, masked, drafted) = run(model)
    found = torch.autograd.grad(report.total, list(model.parameters()))
    hidden = masked == model.mask_id
    total = torch.zeros((), dtype=torch.float64)
    for noisy in (masked, drafted):
        logits = LayerModel.noisy_features(model, noisy, batch, BLOCK, hidden) @ model.head()[: model.mask_id].T
        total = total - logits.log_softmax(-1).gather(1, batch.tokens[hidden][:, None]).sum() / 2
    for one, other in zip(found, torch.autograd.grad(total, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_ratio_stays_where_other_fields_of_noise_are_given() -> None:
    noise = build("own_errors", noise={"group": 4}).noise
    assert (noise.low, noise.high, noise.replace, noise.group) == (0.75, 0.75, 0.0, 4)
    assert build("own_errors", noise={"high": 0.9}).noise.high == 0.9
    with pytest.raises(Exception, match="complementary=false"):
        build("own_errors", noise={"complementary": True})


def test_a_pass_for_each_report_and_one_forward_for_the_draft() -> None:
    objective = build("own_errors", autoregressive=0.1)
    made = list(objective.losses(Recorder(), example(), BLOCK, rng()))
    assert len(objective.passes) == len(made) == 3
    assert [one.drafts for one in objective.passes] == [1, 0, 0] and objective.passes[0].reads == 1


def everything_drafted(patch: Any) -> None:
    draft = own_errors.OwnErrors._draft
    patch.setattr(own_errors.OwnErrors, "_draft", lambda self, *rest: (draft(self, *rest) + 1) % 11)


def visible_ones_supervised(patch: Any) -> None:
    patch.setattr(
        own_errors, "replace", lambda view, **changes: REPLACE(view, **{**changes, **_learned(view, changes)})
    )


REPLACE = own_errors.replace


def _learned(view: Any, changes: dict[str, Any]) -> dict[str, Any]:
    return {"maskable": view.maskable} if "maskable" in changes else {}


@pytest.mark.parametrize("plant", [everything_drafted, visible_ones_supervised])
def test_a_planted_error_is_noticed(plant: Any, monkeypatch: Any) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_the_loop()
