# Groups of blocks in training: how rows are cut, how rates rise in a group, and that off means off to the bit.
# Entry points: pytest.
# Layouts and rates are read back from what a recording model was asked, and checked by loops over blocks.
"""Tests of core/groups.py and of the chain of mask rates."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from core.recorder import Recorder, build, example, rng
from core.stand_ins import LayerModel, batch_of

from hildanext.config.noise import NoiseConfig
from hildanext.core import groups as module
from hildanext.core.groups import grouped, repaired, systematic
from hildanext.core.noise import corrupt, mean_rate
from hildanext.core.types import Batch

LARGEST, BLOCK = 3, 4


def long_batch(rows: int = 64) -> Batch:
    """Rows of 64: a prompt of 10, a reply up to 40, padding as a document of its own from 56."""
    tokens = torch.randint(0, 11, (rows, 64), generator=rng(3))
    learn = (torch.arange(64) >= 10) & (torch.arange(64) < 40)
    docs = (torch.arange(64) >= 56).long()
    return batch_of(tokens, learn.expand(rows, 64).clone(), docs.expand(rows, 64).clone(), tuple(range(rows)))


def sizes_of(row: list[int]) -> list[int]:
    """Blocks of each group of the reply, blocks 2 to 9."""
    return [len(list(found)) for _, found in itertools.groupby(row[2 * BLOCK : 10 * BLOCK : BLOCK])]


def drawn(layouts: str = "both", seed: int = 0, rows: int = 64) -> list[list[int]]:
    config = NoiseConfig(group=LARGEST, layouts=layouts)
    made = grouped(config, LayerModel(), long_batch(rows), BLOCK, rng(seed)).groups
    assert made is not None
    return made.tolist()


def test_every_block_of_the_reply_is_in_one_group_of_at_most_the_largest_size_and_the_prompt_is_alone() -> None:
    for row in drawn():
        assert row[: 2 * BLOCK] == [0] * BLOCK + [1] * BLOCK
        assert row[10 * BLOCK :] == [i // BLOCK for i in range(10 * BLOCK, 64)]
        assert sum(sizes_of(row)) == 8 and max(sizes_of(row)) <= LARGEST
        for i in range(2 * BLOCK, 10 * BLOCK):
            assert row[i] == row[i // BLOCK * BLOCK] and 2 <= row[i] <= i // BLOCK


def test_all_layouts_occur_and_no_other() -> None:
    equal = {tuple(systematic(8, size, offset)) for size in (2, 3) for offset in range(size)}
    assert {tuple(sizes_of(row)) for row in drawn("systematic")} == equal and len(equal) == 5
    assert all(1 not in sizes_of(row) for row in drawn("random"))
    assert {tuple(sizes_of(row)) for row in drawn("both")} > equal


def test_layouts_by_hand() -> None:
    assert systematic(7, 3, 2) == [2, 3, 2] and systematic(7, 2, 0) == [2, 2, 2, 1] and systematic(1, 3, 2) == [1]
    assert repaired(7, 3, [3, 3, 2]) == [3, 2, 2] and repaired(5, 3, [2, 2, 3]) == [2, 3]
    assert repaired(3, 2, [2, 2]) == [2, 1] and repaired(1, 3, [2]) == [1] and repaired(6, 4, [3, 3, 2]) == [3, 3]


def test_groups_end_with_their_document_on_both_grids() -> None:
    for grid in ("global", "per_document"):
        model = LayerModel()
        model.block_grid = grid
        data = example(rows=40, length=16)
        found = grouped(NoiseConfig(group=4), model, data, BLOCK, rng())
        assert found.groups is not None
        for docs, row, learn in zip(data.docs.tolist(), found.groups.tolist(), data.learn.tolist(), strict=True):
            begin = {doc: docs.index(doc) for doc in docs}
            own = [(i - begin[docs[i]] if grid == "per_document" else i) // BLOCK for i in range(16)]
            assert all(begin_block(own, docs, i, begin) <= row[i] <= own[i] for i in range(16))
            assert all(
                row[i] == own[i] for i in range(16) if not any(learn[j] for j in range(16) if same(docs, own, i, j))
            )


def begin_block(own: list[int], docs: list[int], i: int, begin: dict[int, int]) -> int:
    return own[begin[docs[i]]]


def same(docs: list[int], own: list[int], i: int, j: int) -> bool:
    return docs[i] == docs[j] and own[i] == own[j]


def chains(config: NoiseConfig, seed: int = 0, rows: int = 400) -> list[list[tuple[int, float]]]:
    """For every group of the replies: (masked, rate) of its blocks that are whole replies."""
    data = long_batch(rows)
    made = grouped(config, LayerModel(), data, BLOCK, rng(seed))
    (view,) = corrupt(config, LayerModel(), made, BLOCK, rng(seed + 1))
    found, assigned = [], made.groups
    assert assigned is not None
    for row in range(rows):
        for _, blocks in itertools.groupby(range(3, 10), key=assigned[row, ::BLOCK].tolist().__getitem__):
            spans = [slice(k * BLOCK, (k + 1) * BLOCK) for k in blocks]
            found.append([(int(view.m2t[row, own].sum()), float(view.rate[row, own][0])) for own in spans])
            assert all(bool((view.rate[row, own] == view.rate[row, own][0]).all()) for own in spans)
    return found


def test_rates_rise_within_a_group_and_counts_are_exact() -> None:
    low, high = 0.1, 0.9
    found = chains(NoiseConfig(group=LARGEST, low=low, high=high))
    for group in found:
        rates = [rate for _, rate in group]
        assert rates == sorted(rates) and low <= rates[0] and rates[-1] <= high - 0.01 * (high - low)
        assert all(count == int(BLOCK * rate) for count, rate in group)
    # of groups that begin with a whole block: U(lo, hi) twice, then again
    first = torch.tensor([group[0][1] for group in found if len(group) == LARGEST])
    second = torch.tensor([group[1][1] for group in found if len(group) == LARGEST])
    top = high - 0.01 * (high - low)
    assert abs(float(first.mean()) - (low + 0.75 * (top - low))) < 4 * float(first.std()) / len(first) ** 0.5
    assert abs(float(second.mean()) - (low + 0.875 * (top - low))) < 4 * float(second.std()) / len(second) ** 0.5


def test_the_mean_rate_is_near_that_of_the_draws() -> None:
    config = NoiseConfig(group=2, layouts="systematic")
    rates = [rate for group in chains(config) for _, rate in group]
    assert abs(sum(rates) / len(rates) - mean_rate(config)) < 0.05


def test_replaced_tokens_fall_into_every_block_of_a_group_and_never_outside_the_reply() -> None:
    config = NoiseConfig(group=LARGEST, replace=0.5, may_draw_original=False)
    data = grouped(config, LayerModel(), long_batch(), BLOCK, rng())
    (view,) = corrupt(config, LayerModel(), data, BLOCK, rng(1))
    assert not bool((view.t2t & ~data.learn).any()) and not bool((view.t2t & view.m2t).any())
    assert bool(view.t2t[:, 12:40].view(64, 7, 4).any(dim=2).any(dim=0).all())
    assert torch.equal(view.tokens[~view.m2t & ~view.t2t], data.tokens[~view.m2t & ~view.t2t])


def test_without_groups_nothing_is_drawn_and_the_loss_is_the_same_to_the_bit() -> None:
    for name in ("mask_and_edit", "multi_turn", "own_errors"):
        plain, off = build(name), build(name, noise={**build(name).noise.model_dump(), "group": 1})
        reports = []
        for objective in (plain, off):
            model, stream = Recorder(), rng(5)
            reports.append((objective.loss(model, example(), BLOCK, stream), stream.get_state(), model.asked))
        (one, state, asked), (other, same_state, again) = reports
        assert torch.equal(one.total, other.total) and torch.equal(state, same_state)
        assert all(batch.groups is None for _, batch, _ in asked + again)


def test_groups_of_one_block_each_are_seen_as_no_groups_to_the_bit(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "systematic", lambda count, *_: [1] * count)
    for name in ("mask_and_edit", "multi_turn"):
        objective = build(name, noise={"group": 2, "layouts": "systematic"})
        model, batch = Recorder(), example()
        report = objective.loss(model, batch, BLOCK, rng())
        assert len(model.asked) and all(asked.groups is not None for _, asked, _ in model.asked)
        noisy, _, select = model.asked[0]
        alone = LayerModel.noisy_features(model, noisy, batch, BLOCK, select)
        assert torch.equal(alone, LayerModel.noisy_features(model, noisy, model.asked[0][1], BLOCK, select))
        assert bool(report.total > 0)


def test_the_whole_row_as_a_block_has_no_groups() -> None:
    for block in (0, 16):
        model = Recorder()
        build("mask_and_edit", noise={"group": 4}).loss(model, example(), block, rng())
        assert model.asked[0][1].groups is None


@pytest.mark.parametrize("more", [{"unit": "document"}, {"complementary": True}, {"schedule": "cosine"}])
def test_what_a_chain_cannot_be_drawn_with_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="group 2: rates of a group are a chain"):
        NoiseConfig(group=2, **more)


def test_a_row_keeps_its_groups_and_masks_whatever_batch_it_is_in() -> None:
    config, data = NoiseConfig(group=LARGEST), long_batch(8)
    part = Batch(data.tokens[5:6], data.learn[5:6], data.docs[5:6], (5,))
    found = []
    for batch in (data, part):
        stream = rng(2)
        made = grouped(config, LayerModel(), batch, BLOCK, stream)
        (view,) = corrupt(config, LayerModel(), made, BLOCK, stream)
        assert made.groups is not None
        found.append((made.groups[-1 if batch is part else 5], view.m2t[-1 if batch is part else 5]))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def rates_that_fall(patch: Any) -> None:
    from hildanext.core import noise

    chain = noise._chain
    patch.setattr(noise, "_chain", lambda config, unit, *rest: 1 - chain(config, unit, *rest))


def prompts_in_groups(patch: Any) -> None:
    patch.setattr(module, "maskable", lambda batch, mask_id: torch.ones_like(batch.learn))


def groups_across_documents(patch: Any) -> None:
    row = module._row
    patch.setattr(module, "_row", lambda blocks, docs, *rest: row(blocks, [0] * len(docs), *rest))


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (rates_that_fall, test_rates_rise_within_a_group_and_counts_are_exact),
        (prompts_in_groups,
         test_every_block_of_the_reply_is_in_one_group_of_at_most_the_largest_size_and_the_prompt_is_alone),
        (groups_across_documents, test_groups_end_with_their_document_on_both_grids),
    ],
)  # fmt: skip
def test_a_planted_error_is_noticed(plant: Any, check: Any, monkeypatch: Any) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()
