# The annealed mask against its formula entry by entry, its probability over a run, what it must not touch.
# Entry points: pytest.
# The oracle is a loop over (row, query, key) that shares nothing with the package.
"""Tests of core/annealing.py and of objective.anneal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core.checks import assert_drawn_with
from core.recorder import Recorder, build, example, rng
from core.stand_ins import batch_of
from torch import Tensor

from hildanext.core import annealing
from hildanext.core.annealing import annealed, opened_only
from hildanext.core.masks import block_diffusion_mask, document_mask
from hildanext.core.objectives import mask_and_edit

LENGTH, BLOCK = 8, 4


def literal(docs: list[list[int]], block: int, opened: Tensor) -> Tensor:
    length, halves = len(docs[0]), 2 if block < len(docs[0]) else 1
    mask = torch.zeros(len(docs), 1, halves * length, halves * length, dtype=torch.bool)
    for row, ids in enumerate(docs):
        for query in range(halves * length):
            for key in range(halves * length):
                (q_clean, i), (k_clean, j) = divmod(query, length), divmod(key, length)
                if q_clean == k_clean:
                    near = i // block == j // block or (q_clean == 1 and j < i)
                    seen = near and (j <= i or bool(opened[i, j]))
                else:
                    seen = q_clean == 0 and j // block < i // block
                mask[row, 0, query, key] = ids[i] == ids[j] and seen
    return mask


def test_the_mask_is_causal_or_what_was_drawn_entry_by_entry() -> None:
    docs = torch.tensor([[0] * LENGTH, [0, 0, 1, 1, 1, 1, 2, 2]])
    data = batch_of(torch.zeros(2, LENGTH, dtype=torch.long), docs=docs)
    for share in (0.0, 0.3, 0.9):
        drawn = annealed(data, share, rng(3)).opened
        assert drawn is not None and bool(drawn.tril().sum() == LENGTH * (LENGTH + 1) // 2)
        for block in (1, 2, 4, LENGTH):
            mask = block_diffusion_mask(LENGTH, block, docs) if block < LENGTH else document_mask(docs)
            assert torch.equal(opened_only(mask, drawn).expand(2, -1, -1, -1), literal(docs.tolist(), block, drawn))
        whole = block_diffusion_mask(LENGTH, BLOCK, docs)
        assert not torch.equal(opened_only(whole, drawn), whole)
    assert opened_only(whole, None) is whole


def opened_at(objective: Any, done: float, seed: int) -> Tensor | None:
    model = Recorder()
    objective.at(done).loss(model, example(), BLOCK, rng(seed))
    found: Tensor | None = model.asked[-1][1].opened
    assert all((asked.opened is None) == (found is None) for _, asked, _ in model.asked)
    return found


@pytest.mark.parametrize("name", ["mask_and_edit", "multi_turn", "own_errors", "trajectory", "align"])
def test_the_probability_rises_linearly_from_causal_to_the_block(name: str) -> None:
    over = {"type": "mask_and_edit", "anneal": 0.5}
    objective = build("align", weight=0.0, over=over) if name == "align" else build(name, anneal=0.5)
    later = torch.ones(16, 16, dtype=torch.bool).triu(1)
    for done, share in ((0.0, 0.0), (0.1, 0.2), (0.4, 0.8)):
        draws = [drawn for seed in range(6) if (drawn := opened_at(objective, done, seed)) is not None]
        assert len(draws) == 6
        events = torch.stack([drawn[later] for drawn in draws])
        assert_drawn_with(events, torch.full(events.shape, share, dtype=torch.float64), bins=4)
    assert opened_at(objective, 0.5, 0) is None and opened_at(objective, 0.9, 0) is None


def test_what_is_masked_and_what_is_drawn_after_stay_as_without_annealing() -> None:
    seen = []
    for anneal in (0.0, 1.0):
        model, stream = Recorder(), rng(4)
        report = build("mask_and_edit", anneal=anneal).at(0.5).loss(model, example(), BLOCK, stream)
        seen.append((model.asked[0][0], stream.get_state(), float(report)))
    assert torch.equal(seen[0][0], seen[1][0]) and torch.equal(seen[0][1], seen[1][1])
    assert seen[0][2] != pytest.approx(seen[1][2], abs=1e-6)


def test_before_a_run_and_without_the_field_nothing_is_annealed() -> None:
    model = Recorder()
    build("mask_and_edit", anneal=1.0).loss(model, example(), BLOCK, rng())
    build("mask_and_edit").at(0.0).loss(model, example(), BLOCK, rng())
    assert [asked.opened for _, asked, _ in model.asked] == [None, None]


def clean_half_left_open(patch: Any) -> None:
    def noisy_only(mask: Tensor, opened: Tensor | None) -> Tensor:
        made = mask.clone()
        if opened is not None:
            made[..., : len(opened), : len(opened)] &= opened
        return made

    patch.setitem(globals(), "opened_only", noisy_only)


def closed_where_it_should_open(patch: Any) -> None:
    once = annealing.annealed
    patch.setattr(mask_and_edit, "annealed", lambda batch, share, stream: once(batch, 1 - share, stream))


def noise_shifted(patch: Any) -> None:
    once = annealing.annealed

    def advancing(batch: Any, share: float, stream: torch.Generator) -> Any:
        if share < 1:
            torch.rand(1, generator=stream)
        return once(batch, share, stream)

    patch.setattr(mask_and_edit, "annealed", advancing)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (clean_half_left_open, test_the_mask_is_causal_or_what_was_drawn_entry_by_entry),
        (closed_where_it_should_open,
         lambda: test_the_probability_rises_linearly_from_causal_to_the_block("mask_and_edit")),
        (noise_shifted, test_what_is_masked_and_what_is_drawn_after_stay_as_without_annealing),
    ],
)  # fmt: skip
def test_a_planted_error_is_noticed(plant: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()
