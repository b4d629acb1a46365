# The noised half without the blocks that nobody reads, and views beside one clean half, against the whole forward.
# Entry points: pytest.
# Planted: a second view that is visible to the first, a block left out although something in it is read.
"""Tests of core/compaction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hildanext.config.model import ModelConfig
from hildanext.core import compaction
from hildanext.core.batches import document_batch, repeated
from hildanext.core.compaction import Compaction
from hildanext.core.masks import BlockDiffusionRule, block_diffusion_mask
from hildanext.core.objectives.distill import Distill
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch
from hildanext.models.load import load_model

BLOCK, LENGTH = 4, 24


@pytest.fixture(scope="module")
def model() -> Any:
    loaded = load_model(ModelConfig(path="tiny", dtype="float32", device="cpu", attention="dense"))
    return loaded.denoiser.eval()


def batch(grid: str = "global") -> Batch:
    ids = torch.randint(5, 900, (3, LENGTH), generator=torch.Generator().manual_seed(2)).tolist()
    made = document_batch([(ids[0], 9), (ids[1][:17], 3), (ids[2], 0)], 0, 8, ids=(4, 5, 6))
    docs = made.docs.clone()
    docs[2, 10:] = 1
    return replace(made, docs=docs)


def noised(rows: Batch, views: int, mask_id: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(tokens, positions that are read) [k B, L] of views with a tenth of the positions read."""
    rng = torch.Generator().manual_seed(seed)
    tokens = rows.tokens.repeat(views, 1)
    return torch.where(torch.rand(tokens.shape, generator=rng) < 0.5, mask_id, tokens), torch.rand(
        tokens.shape, generator=rng
    ) < 0.1


def assert_equals_whole(model: Any, views: int) -> Tensor:
    rows = batch()
    tokens, read = noised(rows, views, model.mask_id)
    made = model.noisy_features(tokens, rows, BLOCK, read)
    with model.whole():
        wanted = model.noisy_features(tokens, repeated(rows, views), BLOCK, read)
    assert torch.allclose(made, wanted, atol=2e-5)
    return made


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize(("shift", "grid"), [("none", "global"), ("clean", "global"), ("clean", "per_document")])
def test_features_are_those_of_the_whole_forward(
    model: Any, monkeypatch: pytest.MonkeyPatch, views: int, shift: str, grid: str
) -> None:
    monkeypatch.setattr(model, "shift", shift)
    monkeypatch.setattr(model, "block_grid", grid)
    with torch.no_grad():
        assert len(assert_equals_whole(model, views)) > 5


def test_the_network_reads_less(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, body = [], model.body
    monkeypatch.setattr(model, "body", lambda tokens, *rest, **more: seen.append(tokens.shape) or body(tokens, *rest))
    rows, read = batch(), torch.zeros(3, LENGTH, dtype=torch.bool)
    read[0, 9] = read[2, 0] = True
    with torch.no_grad():
        model.noisy_features(rows.tokens, rows, BLOCK, read)
    assert seen == [(3, 6 + LENGTH)]


def test_a_visible_second_view_is_seen(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compaction, "mask", lambda made: replace(made, view=torch.zeros_like(made.view)).true_mask())
    monkeypatch.setattr(Compaction, "true_mask", MASK, raising=False)
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_equals_whole(model, 2)


MASK = Compaction.mask


def test_a_block_left_out_is_seen(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Compaction.of

    def fewer(rule: BlockDiffusionRule, select: Tensor) -> Compaction:
        first = select.clone()
        first[:, 4:] = False
        return known(rule, first)

    monkeypatch.setattr(compaction.Compaction, "of", staticmethod(fewer))
    with torch.no_grad(), pytest.raises((AssertionError, IndexError)):
        assert_equals_whole(model, 1)


def test_the_mask_is_the_rule_with_rows_and_columns_left_out() -> None:
    rows = batch()
    rule = BlockDiffusionRule.of(LENGTH, BLOCK, rows.docs)
    _, read = noised(rows, 2, 1)
    made, whole = Compaction.of(rule, read), block_diffusion_mask(LENGTH, BLOCK, rows.docs)
    mask = made.mask()
    for row in range(3):
        for one, (place, view) in enumerate(zip(made.place[row].tolist(), made.view[row].tolist(), strict=True)):
            for other, (key, hers) in enumerate(zip(made.place[row].tolist(), made.view[row].tolist(), strict=True)):
                wanted = bool(whole[row, 0, place, key]) and (key >= LENGTH or view == hers)
                assert bool(mask[row, 0, one, other]) == wanted
    blocks = {(row, view, place // BLOCK) for row, place in read.nonzero().tolist() for view in (row // 3,)}
    for number, view, block in blocks:
        held = {(v, p) for v, p in zip(made.view[number % 3].tolist(), made.place[number % 3].tolist(), strict=True)}
        docs = rows.docs[number % 3]
        for place in range(block * BLOCK, (block + 1) * BLOCK):
            asked = read[number, block * BLOCK : (block + 1) * BLOCK] & (docs[place] == docs[block * BLOCK :][:BLOCK])
            assert (view, place) in held or not bool(asked.any())


OBJECTIVES = [
    MaskAndEdit(noise={"complementary": True}),
    MaskAndEdit(noise={"complementary": True}, confidence=1.0, confidence_over="normaliser", weighting="uniform"),
    Distill(noise={"complementary": True}, parent="there", keep_share=0.5),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["plain", "entropy", "distill"])
def test_views_beside_one_clean_half_give_the_loss_and_gradient_of_two_forwards(model: Any, objective: Any) -> None:
    found = []
    for beside in (False, True):
        made = objective.model_copy(update={"views_beside": beside})
        if isinstance(made, Distill):
            made._teacher = model
        model.zero_grad()
        reports = list(made.losses(model, batch(), BLOCK, torch.Generator().manual_seed(1)))
        assert len(reports) == len(made.passes) == (1 if beside else 2)
        for report in reports:
            report.total.backward()
        gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
        found.append((sum(float(one.total.detach()) for one in reports), gradient))
    model.zero_grad()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=2e-5 * float(found[0][1].abs().max()))


def test_a_pass_of_views_beside_counts_the_clean_half_once() -> None:
    (both,) = MaskAndEdit(noise={"complementary": True}, views_beside=True).passes
    assert (both.views, both.rows) == (2, 1.5)
    assert [one.rows for one in MaskAndEdit(noise={"complementary": True}).passes] == [1.0, 1.0]
