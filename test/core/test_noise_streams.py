# A row's noise belongs to the row: ranks, micro-batches, worker processes and orders do not change its masks.
# Entry points: pytest.
# Streams keyed by the place in the batch, by the process or by one shared generator are planted and fail.
"""Tests of core/row_streams.py and of noise under splitting."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest
import torch
from core.checks import rng
from core.stand_ins import UniformModel, batch_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hildanext.config.noise import NoiseConfig
from hildanext.core import noise, row_streams
from hildanext.core.noise import corrupt
from hildanext.core.row_streams import row_seeds, row_uniforms
from hildanext.core.types import Batch
from hildanext.decoding.randomness import uniform

MODEL = UniformModel(50)
TOKENS = torch.randint(0, 49, (8, 32), generator=rng(1))
IDS = (31, 7, 2, 99, 54, 12, 8, 1000)
CONFIGS = [NoiseConfig(unit=unit, span=0.3, replace=0.4) for unit in ("block", "sequence", "document")]
UNIFORMS, SEED = row_streams.row_uniforms, row_streams.row_seeds


def part(rows: list[int]) -> Batch:
    return batch_of(TOKENS[rows], ids=tuple(IDS[row] for row in rows))


def drawn(config: NoiseConfig, rows: list[int]) -> Tensor:
    """Everything drawn for these rows, [rows, L, 4]."""
    (view,) = corrupt(config, MODEL, part(rows), 8, rng(42))
    return torch.stack([view.tokens.double(), view.m2t.double(), view.rate, view.elbo], -1)


def assert_no_split_matters(config: NoiseConfig) -> None:
    whole = drawn(config, list(range(8)))
    for parts in ([[0, 1, 2, 3], [4, 5, 6, 7]], [[0], [1, 2, 3, 4, 5, 6], [7]], [[row] for row in range(8)]):
        assert torch.equal(torch.cat([drawn(config, rows) for rows in parts]), whole)
    order = [5, 2, 7, 0, 1, 3, 6, 4]
    assert torch.equal(drawn(config, order), whole[order])
    assert not torch.equal(whole[0], whole[1])


class Rows(Dataset):
    """Draws a row's noise where it is fetched."""

    def __len__(self) -> int:
        return len(TOKENS)

    def __getitem__(self, row: int) -> Tensor:
        return drawn(CONFIGS[0], [row])[0]


def assert_no_worker_matters() -> None:
    whole = drawn(CONFIGS[0], list(range(8)))
    for workers in (0, 1, 2):
        assert torch.equal(torch.cat(list(DataLoader(Rows(), batch_size=2, num_workers=workers))), whole)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.unit)
def test_any_split_over_ranks_and_any_order_draw_the_masks_of_one(config):
    assert_no_split_matters(config)


def test_any_number_of_worker_processes_draws_the_masks_of_one():
    assert_no_worker_matters()


def _of_one_generator(batch: Batch, generator: torch.Generator, count: int) -> Tensor:
    return torch.rand(count, *batch.tokens.shape, generator=generator, dtype=torch.float64)


def _of_the_place(batch: Batch, generator: torch.Generator, count: int) -> Tensor:
    return UNIFORMS(batch_of(batch.tokens), generator, count)


def _of_the_last_row(batch: Batch, generator: torch.Generator, count: int) -> Tensor:
    return UNIFORMS(batch_of(batch.tokens, ids=(batch.ids[-1],) * len(batch.ids)), generator, count)


@pytest.mark.parametrize("fault", [_of_one_generator, _of_the_place, _of_the_last_row])
def test_one_generator_and_streams_of_the_place_depend_on_the_split(fault, monkeypatch):
    monkeypatch.setattr(noise, "row_uniforms", fault)
    with pytest.raises(AssertionError):
        assert_no_split_matters(CONFIGS[0])


SEEDS: dict[str, Callable[[int, Sequence[int]], list[int]]] = {
    "of the process": lambda base, rows: SEED(base + os.getpid(), rows),
    "of the worker": lambda base, rows: SEED(torch.initial_seed(), rows),
}


@pytest.mark.parametrize("fault", SEEDS)
def test_seeds_that_depend_on_the_worker_are_seen(fault, monkeypatch):
    monkeypatch.setattr(row_streams, "row_seeds", SEEDS[fault])
    with pytest.raises(AssertionError):
        assert_no_worker_matters()


def test_the_next_draw_of_the_same_generator_is_another():
    generator = rng(42)
    first, second = row_uniforms(part([0]), generator, 2), row_uniforms(part([0]), generator, 2)
    assert not torch.equal(first, second)
    assert torch.equal(first, row_uniforms(part([0]), rng(42), 2))


def test_row_seeds_of_neighbouring_rows_and_steps_differ():
    seeds = {seed for base in range(100) for seed in row_seeds(base, range(100))}
    assert len(seeds) == 10_000


def splitmix64(state: int) -> int:
    """The generator's output function in Python's integers, as printed in Steele, Lea and Flood (2014)."""
    word = 2**64 - 1
    mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & word
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & word
    return mixed ^ (mixed >> 31)


def test_the_seed_of_a_row_is_splitmix64_after_as_many_steps():
    for base in (0, 1, 2**62 - 1, 0xDEADBEEF):
        rows = [0, 1, 7, 10**12]
        states = [(base + (row + 1) * 0x9E3779B97F4A7C15) % 2**64 for row in rows]
        assert row_seeds(base, rows) == [splitmix64(state) for state in states]
    assert row_seeds(0, [0]) == [0xE220A8397B1DCDAF]


def test_the_decoders_numbers_are_keyed_by_the_same_hash():
    found = uniform(5, 2, torch.tensor([0, 9, 70_000]), 3, 1)
    for place, position in zip(found.tolist(), (0, 9, 70_000), strict=True):
        state = splitmix64((5 + 0x9E3779B97F4A7C15) % 2**64)
        for key in (2, position, 3, 1):
            state = splitmix64(((state ^ key) + 0x9E3779B97F4A7C15) % 2**64)
        assert place == (state >> 11) * 2.0**-53


def assert_rows_are_uncorrelated() -> None:
    batch = batch_of(torch.zeros(400, 50, dtype=torch.long), ids=tuple(range(400)))
    values = row_uniforms(batch, rng(42), 1)[0]
    for table in (values, values.T):
        correlation = torch.corrcoef(table)
        off = correlation[~torch.eye(len(table), dtype=torch.bool)]
        assert float(off.abs().max()) < 5.5 / table.shape[1] ** 0.5


def test_rows_and_places_are_uncorrelated(monkeypatch):
    assert_rows_are_uncorrelated()
    monkeypatch.setattr(row_streams, "row_seeds", lambda base, rows: SEED(base, [row // 2 for row in rows]))
    with pytest.raises(AssertionError):
        assert_rows_are_uncorrelated()
