# Objective edit_actions: the loss by a literal loop over both turns, what a first draft may look like, what is refused.
# Entry points: pytest.
# The recorder keeps every draft it was asked about; labels are computed again, block by block, from draft and text.
"""Tests of core/objectives/edit_actions.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from core.recorder import Recorder, build, example, rng
from torch import Tensor

from hildanext.core.levenshtein import Controls, apply, labels
from hildanext.core.objectives import edit_actions
from hildanext.core.types import Batch
from hildanext.errors import ConfigError

BLOCK, DELETE, INSERT = 4, 9, 10


class Acting(Recorder):
    """A recorder with rows for the actions."""

    edit_ids = (DELETE, INSERT)


def rows(count: int = 4) -> Batch:
    """Text without the ids of actions."""
    batch = example(count)
    return replace(batch, tokens=batch.tokens % DELETE)


def run(model: Any, seed: int = 0, **fields: Any) -> Any:
    noise = {"vocabulary": DELETE, "draw": "count", "replace": 0.1}
    return build("edit_actions", noise=noise, missing=0.1, surplus=0.1, **fields).loss(model, rows(), BLOCK, rng(seed))


def pieces(batch: Batch) -> list[tuple[int, int, int]]:
    """(row, first, stop) of what one block of one document has to learn."""
    found = list[tuple[int, int, int]]()
    for row in range(len(batch.tokens)):
        for start in range(0, batch.tokens.shape[1], BLOCK):
            for doc in range(3):
                own = [i for i in range(start, start + BLOCK) if batch.learn[row, i] and batch.docs[row, i] == doc]
                found += [(row, own[0], own[-1] + 1)] if own else []
    return found


def check_the_loop(seed: int) -> None:
    model, batch = Acting(), rows()
    report, ids = run(model, seed), Controls(DELETE, INSERT, model.mask_id)
    drafts = [noisy for noisy, _, _ in model.asked]
    total, seen = 0.0, dict.fromkeys(edit_actions.SETS, 0)
    for turn, draft in enumerate(drafts):
        nll = -model.logits(turn, BLOCK).log_softmax(-1)
        for row, first, stop in pieces(batch):
            own, text = draft[row, first:stop].tolist(), batch.tokens[row, first:stop].tolist()
            for place, (token, label) in enumerate(zip(own, labels(own, text, ids), strict=True)):
                total += float(nll[row, first + place, label]) / 2
                kind = {DELETE: "delete", INSERT: "insert", token: "keep"}.get(label, "substitute")
                seen["m2t" if token == ids.mask else kind] += 1
    assert abs(float(report.total.detach()) - total) < 1e-3
    assert int(report.normaliser) == int(batch.learn.sum())
    assert {name: int(report.counts[name]) for name in seen} == seen
    best = model.logits(0, BLOCK).argmax(-1)
    for row, first, stop in pieces(batch):
        own, actions = drafts[0][row, first:stop].tolist(), best[row, first:stop].tolist()
        choices = [[a] if token != ids.mask else [a, ids.mask] for token, a in zip(own, actions, strict=True)]
        assert drafts[1][row, first:stop].tolist() in _made(own, choices, ids), (row, first)


def _made(own: list[int], choices: list[list[int]], ids: Controls) -> list[list[int]]:
    actions: list[list[int]] = [[]]
    for one in choices:
        actions = [[*before, action] for before in actions for action in one]
    return [apply(own, one, ids) for one in actions]


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_a_literal_loop_over_turns_blocks_and_labels(seed: int) -> None:
    check_the_loop(seed)


def test_first_drafts_are_damaged_text_and_nothing_else_changes() -> None:
    batch, counts = rows(), dict.fromkeys(edit_actions.SETS, 0.0)
    for seed in range(20):
        model = Acting()
        report = run(model, seed, turns=1)
        (draft, _, _) = model.asked[0]
        assert torch.equal(draft[~batch.learn], batch.tokens[~batch.learn])
        assert not bool(torch.isin(draft, torch.tensor(model.edit_ids)).any())
        counts = {name: counts[name] + float(report.counts[name]) for name in counts}
    assert all(count > 5 for count in counts.values())
    model = Acting()
    build("edit_actions", noise={"replace": 0.0, "vocabulary": 9}, whole=1.0, missing=0.0, surplus=0.0, turns=1).loss(
        model, batch, BLOCK, rng()
    )
    assert torch.equal(model.asked[0][0], batch.tokens)


def test_a_model_without_rows_for_actions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set model.edit_actions=true"):
        run(Recorder())


def test_planted_faults_are_seen(monkeypatch: Any) -> None:
    label, act = edit_actions.labels, edit_actions.apply

    def shifted(draft: list[int], target: list[int], ids: Controls) -> list[int]:
        return label(draft, [*target[1:], target[0]], ids)

    def undone(draft: list[int], actions: list[int], ids: Controls) -> list[int]:
        return act(draft, [token if a == ids.delete else a for token, a in zip(draft, actions, strict=True)], ids)

    for name, wrong in (("labels", shifted), ("apply", undone)):
        with monkeypatch.context() as patch:
            patch.setattr(edit_actions, name, wrong)
            with pytest.raises(AssertionError):
                for seed in range(6):
                    check_the_loop(seed)


def test_weights_are_factors_of_their_sets() -> None:
    none: dict[str, Tensor] = {}
    for name in ("m2t_weight", "action_weight", "keep_weight"):
        none[name] = run(Acting(), **{name: 0.0}).total
    whole = run(Acting()).total
    assert sum(one.item() for one in none.values()) == pytest.approx(2 * whole.item(), rel=1e-4)
