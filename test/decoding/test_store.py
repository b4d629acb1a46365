# The store of committed keys and values: what is written where, and that the past is never copied per step.
# Entry points: the tests.
# Letters: R rows, H heads, Q new positions, D width.
"""Key-value store."""

from __future__ import annotations

import pytest
import torch
from decoding.reference import committed
from decoding.sums import Sums

from hildanext.decoding.store import KeysValues, StateStore


def written(store: StateStore, rows: list[int], starts: list[int], sizes: list[int], seed: int = 0) -> torch.Tensor:
    key = torch.randn(len(rows), 2, max(sizes), 3, generator=torch.Generator().manual_seed(seed))
    store.view(rows, starts, sizes).update(key, -key, 0)
    return key


def made(slots: int = 3, capacity: int = 16) -> StateStore:
    store = StateStore()
    store.reserve(slots, capacity)
    for _ in range(slots):
        store.add()
    return store


def keys(store: StateStore) -> torch.Tensor:
    return store.layer(0, KeysValues).held[0]


def sixty(slots: int, capacity: int) -> bool:
    return slots * capacity <= 60


def test_update_returns_views_of_one_preallocated_tensor() -> None:
    store = made()
    key = torch.ones(1, 2, 4, 3)
    first, _ = store.view([0], [0], [4]).update(key, key, 0)
    place = keys(store).data_ptr()
    store.commit(0, 4)
    second, _ = store.view([0], [4], [4]).update(2 * key, key, 0)
    assert first.data_ptr() == second.data_ptr() == place == keys(store).data_ptr()
    assert second.shape == (1, 2, 8, 3) and second[0, 0, :, 0].tolist() == [1] * 4 + [2] * 4


def test_what_was_not_committed_is_overwritten_by_the_next_forward() -> None:
    store = made()
    written(store, [0], [0], [4], 1)
    key = written(store, [0], [0], [4], 2)
    store.commit(0, 4)
    assert torch.equal(committed(store, 0, 0)[0], key[0])
    assert torch.equal(committed(store, 0, 0)[1], -key[0])


def test_rows_of_different_lengths_are_written_behind_their_own() -> None:
    store = made()
    old = written(store, [0, 1], [0, 0], [4, 2])
    store.commit(0, 4)
    store.commit(1, 2)
    new = written(store, [0, 1, 2], [4, 2, 0], [2, 3, 1], 1)
    for row, size in enumerate((2, 3, 1)):
        store.commit(row, size)
    assert store.lengths == [6, 5, 1]
    assert torch.equal(committed(store, 1, 0)[0], torch.cat((old[1, :, :2], new[1, :, :3]), dim=1))


def test_release_keeps_slots_dense_and_the_others_whole() -> None:
    store = made()
    key = written(store, [0, 1, 2], [0, 0, 0], [3, 3, 3])
    for row in range(3):
        store.commit(row, 3)
    assert store.release(0) == 2 and store.lengths == [3, 3]
    assert torch.equal(committed(store, 0, 0)[0], key[2]) and torch.equal(committed(store, 1, 0)[0], key[1])
    assert store.release(1) is None and store.lengths == [3]


def test_growing_keeps_the_contents() -> None:
    store = made()
    key = written(store, [1], [0], [5])
    store.commit(1, 5)
    store.reserve(7, 40)
    assert torch.equal(committed(store, 1, 0)[0], key[0])
    assert keys(store).shape[0] >= 7 and keys(store).shape[2] >= 40
    assert store.bytes() == 2 * keys(store).numel() * 4


def test_growing_stays_within_the_bound_by_giving_up_free_slots() -> None:
    store = made(slots=4, capacity=10)
    key = written(store, [0, 1, 2, 3], [0] * 4, [6] * 4)
    for row in range(4):
        store.commit(row, 6)
    store.release(3), store.release(2)
    store.reserve(2, 25, fits=sixty)
    assert (store.slots, store.capacity) == (2, 25) and torch.equal(committed(store, 1, 0)[0], key[1])
    store.reserve(2, 26, fits=sixty)
    assert store.slots * store.capacity <= 60 and torch.equal(committed(store, 0, 0)[0], key[0])


def test_misuse_is_refused() -> None:
    store = made(slots=2, capacity=8)
    with pytest.raises(ValueError, match="reserve first"):
        store.add()
    with pytest.raises(ValueError, match="consecutive"):
        made().view([0, 2], [0, 0], [1, 1])
    with pytest.raises(ValueError, match="capacity 8"):
        store.view([0], [0], [9])
    with pytest.raises(ValueError, match="beyond"):
        store.view([0], [3], [1])
    store.view([0], [0], [1]).update(torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 3), 0)
    with pytest.raises(ValueError, match="keeps KeysValues, not Sums"):
        store.layer(0, Sums)
