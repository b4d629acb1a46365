# A row's noise belongs to the row: any split over ranks, micro-batches or orders gives the same masks.
# Entry points: pytest.
# The split is shown to matter for a draw from one shared generator, which is the mistake guarded against.
"""Tests of core/row_streams.py and of noise under splitting."""

from __future__ import annotations

import pytest
import torch
from core.stand_ins import UniformModel, batch_of

from hildanext.config.noise import NoiseConfig
from hildanext.core.noise import corrupt
from hildanext.core.row_streams import row_seed, row_uniforms
from hildanext.core.types import Batch

MODEL = UniformModel(50)
TOKENS = torch.randint(0, 49, (8, 32), generator=torch.Generator().manual_seed(1))
IDS = (31, 7, 2, 99, 54, 12, 8, 1000)


def part(rows: list[int]) -> Batch:
    return batch_of(TOKENS[rows], ids=tuple(IDS[row] for row in rows))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(42)


@pytest.mark.parametrize("unit", ["block", "sequence", "document"])
def test_two_ranks_draw_the_masks_of_one(unit):
    config = NoiseConfig(unit=unit, span=0.3, replace=0.4)
    (whole,) = corrupt(config, MODEL, part(list(range(8))), 8, seeded())
    halves = [corrupt(config, MODEL, part(rows), 8, seeded())[0] for rows in ([0, 1, 2, 3], [4, 5, 6, 7])]
    assert torch.equal(torch.cat([half.tokens for half in halves]), whole.tokens)
    assert torch.equal(torch.cat([half.rate for half in halves]), whole.rate)


def test_rows_in_another_order_keep_their_masks():
    order = [5, 2, 7, 0, 1, 3, 6, 4]
    (whole,) = corrupt(NoiseConfig(), MODEL, part(list(range(8))), 8, seeded())
    (moved,) = corrupt(NoiseConfig(), MODEL, part(order), 8, seeded())
    assert torch.equal(moved.tokens, whole.tokens[order])


def test_a_shared_generator_would_depend_on_the_split():
    rng = seeded()
    whole = torch.rand(8, 32, generator=rng)
    halves = torch.cat([torch.rand(4, 32, generator=seeded()), torch.rand(4, 32, generator=seeded())])
    assert not torch.equal(whole, halves)


def test_the_next_draw_of_the_same_generator_is_another():
    rng = seeded()
    first, second = row_uniforms(part([0]), rng, 2), row_uniforms(part([0]), rng, 2)
    assert not torch.equal(first, second)
    assert torch.equal(first, row_uniforms(part([0]), seeded(), 2))


def test_row_seeds_of_neighbouring_rows_and_steps_differ():
    seeds = {row_seed(base, row) for base in range(100) for row in range(100)}
    assert len(seeds) == 10_000


def test_rows_are_uncorrelated():
    batch = batch_of(torch.zeros(400, 50, dtype=torch.long), ids=tuple(range(400)))
    drawn = row_uniforms(batch, seeded(), 1)[0]
    correlation = torch.corrcoef(drawn[:, :].T)
    off = correlation[~torch.eye(50, dtype=torch.bool)]
    assert float(off.abs().max()) < 5 / 400**0.5
