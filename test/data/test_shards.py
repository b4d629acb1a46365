# Shards and loader: rows come back as they were packed; the stream of batches is one function of seed and place.
# Entry points: pytest.
# Rows are written with known integers; the order is recomputed here with numpy.
"""Tests of data/shards.py and data/loader.py."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hildanext.core.types import Batch
from hildanext.data.loader import Loader
from hildanext.data.packing import FILLER, Piece
from hildanext.data.shards import ShardSet, ShardWriter, check_tokenizer, scored_batch, token_type
from hildanext.data.tokenizers import storyworld_tokenizer, tokenizer_hash, train_small
from hildanext.errors import DataError

WINDOW = 8


def piece(document: int, *tokens: int, learn: bool = True) -> Piece:
    return Piece(document, np.array(tokens), np.full(len(tokens), learn))


def written(folder: Path, count: int = 23, **known: Any) -> ShardSet:
    writer = ShardWriter(folder, WINDOW, 300, 0)
    for i in range(count):
        writer.write([piece(2 * i, 100 + i, 101 + i, 102 + i), piece(2 * i + 1, 7, 8, learn=i % 2 == 0)])
    writer.close({"tokenizer_hash": "h", "input_hash": "i", **known})
    return ShardSet.open(folder)


def test_a_row_comes_back_with_its_marks_documents_and_padding(tmp_path: Path) -> None:
    row = written(tmp_path)[1]
    assert row.tokens.tolist() == [101, 102, 103, 7, 8, 0, 0, 0]
    assert row.learn.tolist() == [True, True, True, False, False, False, False, False]
    assert row.docs.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert (row.tokens.dtype, row.learn.dtype, row.docs.dtype) == (np.int64, np.bool_, np.int64)


def test_the_manifest_counts_what_was_written(tmp_path: Path) -> None:
    manifest = written(tmp_path).manifest
    assert (manifest["rows"], manifest["pieces"], manifest["tokens"]) == (23, 46, 115)
    assert manifest["learned"] == 23 * 3 + 12 * 2 and manifest["fill_rate"] == 115 / (23 * 8)


def test_pieces_of_a_cut_document_are_joined_again(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, WINDOW, 300, 0)
    writer.write([piece(1, 5)])
    writer.write([piece(0, 1, 2, 3), piece(2, 9)])
    writer.write([piece(0, 4, 5)])
    writer.close({})
    found = {index: tokens.tolist() for index, tokens in ShardSet.open(tmp_path).documents()}
    assert found == {0: [1, 2, 3, 4, 5], 1: [5], 2: [9]}


def test_large_vocabularies_take_four_bytes_a_token(tmp_path: Path) -> None:
    assert (token_type(65536), token_type(65537)) == (np.uint16, np.uint32)
    writer = ShardWriter(tmp_path, 4, 151_936, 0)
    writer.write([piece(0, 151_935)])
    writer.close({})
    assert ShardSet.open(tmp_path)[0].tokens[0] == 151_935


def test_a_row_over_the_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="9 tokens in a window of 8"):
        ShardWriter(tmp_path, 8, 300, 0).write([piece(0, *range(9))])


def test_missing_or_shortened_shards_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hildanext tokenize"):
        ShardSet.open(tmp_path / "none")
    written(tmp_path / "set")
    data = (tmp_path / "set" / "tokens.bin").read_bytes()
    (tmp_path / "set" / "tokens.bin").write_bytes(data[:-2])
    with pytest.raises(DataError, match="manifest says"):
        ShardSet.open(tmp_path / "set")


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    own, other = storyworld_tokenizer(tmp_path / "own"), train_small(["a b"], tmp_path / "other")
    shards = written(tmp_path / "set", tokenizer_hash=tokenizer_hash(own))
    check_tokenizer(shards, tmp_path / "own")
    with pytest.raises(DataError, match="made with tokenizer"):
        check_tokenizer(shards, other)


def equal(first: Batch, second: Batch) -> bool:
    pairs = ((first.tokens, second.tokens), (first.learn, second.learn), (first.docs, second.docs))
    return first.ids == second.ids and all(torch.equal(a, b) for a, b in pairs)


def take(loader: Loader, count: int) -> list[Batch]:
    return list(islice(loader, count))


def test_the_order_is_a_fresh_permutation_of_every_epoch(tmp_path: Path) -> None:
    shards = written(tmp_path)
    ids = [index for batch in take(Loader(shards, 4, 5), 23) for index in batch.ids]
    for epoch in range(4):
        expected = np.random.default_rng([5, epoch]).permutation(23).tolist()
        assert ids[23 * epoch : 23 * (epoch + 1)] == expected
    assert take(Loader(shards, 4, 6), 1)[0].ids != tuple(ids[:4])


def test_batches_hold_the_rows_they_name(tmp_path: Path) -> None:
    shards = written(tmp_path)
    batch = take(Loader(shards, 4, 5), 1)[0]
    for i, index in enumerate(batch.ids):
        assert batch.tokens[i].tolist() == shards[index].tokens.tolist()
    assert batch.tokens.dtype == batch.docs.dtype == torch.int64 and batch.learn.dtype == torch.bool
    assert batch.positions()[0].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_zero_one_and_four_workers_give_the_same_batches(tmp_path: Path) -> None:
    shards = written(tmp_path)
    expected = take(Loader(shards, 3, 5, shorten=0.5), 12)
    for workers in (1, 4):
        found = take(Loader(shards, 3, 5, shorten=0.5, workers=workers), 12)
        assert all(equal(a, b) for a, b in zip(expected, found, strict=True))


def test_ranks_share_the_stream_without_overlap(tmp_path: Path) -> None:
    shards = written(tmp_path)
    whole = [index for batch in take(Loader(shards, 6, 5), 4) for index in batch.ids]
    parts = [take(Loader(shards, 2, 5, rank=rank, ranks=3), 4) for rank in range(3)]
    assert [index for step in zip(*parts, strict=True) for batch in step for index in batch.ids] == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_at_the_very_next_example(tmp_path: Path, workers: int) -> None:
    shards = written(tmp_path)
    whole = take(Loader(shards, 3, 5, workers=workers, shorten=0.3), 15)
    for stop in (0, 1, 9):
        first = Loader(shards, 3, 5, workers=workers, shorten=0.3)
        take(first, stop)
        second = Loader(shards, 3, 5, workers=workers, shorten=0.3)
        second.load_state_dict(first.state_dict())
        assert all(equal(a, b) for a, b in zip(whole[stop:], take(second, 15 - stop), strict=True))


def test_a_place_carries_over_to_another_batch_where_it_is_whole(tmp_path: Path) -> None:
    shards = written(tmp_path)
    first = Loader(shards, 3, 5)
    take(first, 4)
    second = Loader(shards, 2, 5, rank=1, ranks=3)
    second.load_state_dict(first.state_dict())
    whole = [index for batch in take(Loader(shards, 1, 5), 18) for index in batch.ids]
    assert take(second, 1)[0].ids == tuple(whole[14:16])
    with pytest.raises(DataError, match="no multiple"):
        Loader(shards, 5, 5).load_state_dict(first.state_dict())


def test_a_place_in_other_data_is_refused(tmp_path: Path) -> None:
    state = Loader(written(tmp_path / "a"), 3, 5).state_dict()
    with pytest.raises(DataError, match="other data"):
        Loader(written(tmp_path / "b", input_hash="other"), 3, 5).load_state_dict(state)
    with pytest.raises(DataError, match="seed"):
        Loader(written(tmp_path / "c"), 3, 6).load_state_dict(state)


def test_shortening_cuts_its_share_of_rows_and_only_tails(tmp_path: Path) -> None:
    shards = written(tmp_path, 200)
    plain, short = (take(Loader(shards, 50, 5, shorten=share), 8) for share in (0.0, 0.25))
    cut = 0
    for a, b in zip(plain, short, strict=True):
        assert a.ids == b.ids
        for i in range(50):
            kept = int((a.docs[i] == b.docs[i]).sum())
            cut += bool((a.docs[i] != b.docs[i]).any())
            assert torch.equal(b.learn[i, :kept], a.learn[i, :kept]) and not b.learn[i, kept:].any()
    assert 60 <= cut <= 140


def test_an_empty_split_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        Loader(written(tmp_path, 0), 1, 0)


def filled_row(folder: Path, mark: int, **known: Any) -> ShardSet:
    """One row: a context token and a reply that ends with 0 and is filled with two more; then a text that ends so."""
    writer = ShardWriter(folder, WINDOW, 300, 0)
    writer.write([
        Piece(0, np.array([5, 6, 0, 0, 0]), np.array([0, 1, 1, mark, mark])),
        Piece(1, np.array([7, 0]), np.array([1, 1])),
    ])  # fmt: skip
    writer.close({"tokenizer_hash": "h", **known})
    return ShardSet.open(folder)


def test_filler_is_learned_but_scored_and_seen_nowhere(tmp_path: Path) -> None:
    shards = filled_row(tmp_path, FILLER)
    assert shards[0].learn.tolist() == [False, True, True, True, True, True, True, False]
    assert shards.manifest["learned"] == 6 and shards.manifest["filler"] == 2
    batch = scored_batch(shards, [0], 299)
    assert batch.tokens.tolist() == [[5, 6, 0, 299, 299, 7, 0, 0]]
    assert batch.learn.tolist() == [[False, True, True, False, False, True, True, False]]
    assert torch.equal(batch.docs, torch.from_numpy(shards[0].docs)[None]) and batch.ids == (0,)


def test_filler_of_shards_from_before_it_was_marked_is_found_by_its_place(tmp_path: Path) -> None:
    shards = filled_row(tmp_path, 1, pad_to_block=4)
    del shards.manifest["filler"]
    assert shards.filler(0).nonzero()[0].tolist() == [3, 4]
    unfilled = filled_row(tmp_path, 1, pad_to_block=0)
    del unfilled.manifest["filler"]
    assert not unfilled.filler(0).any()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_part_is_a_set_of_its_rows_in_every_process(tmp_path: Path, workers: int) -> None:
    whole = written(tmp_path)
    part = whole.part(5, 12).part(1, 7)
    assert len(part) == 6 and [part[i].tokens[0] for i in range(6)] == [106 + i for i in range(6)]
    with pytest.raises(IndexError):
        part[6]
    batches = islice(Loader(part, 3, 0, workers=workers), 2)
    assert sorted(int(token) for batch in batches for token in batch.tokens[:, 0]) == [106 + i for i in range(6)]


@pytest.mark.parametrize(("ranks", "accumulate", "workers"), [(1, 1, 0), (1, 5, 0), (1, 5, 1), (5, 1, 0)])
def test_a_row_drawn_again_in_one_step_has_another_id_however_the_step_is_split(
    tmp_path: Path, ranks: int, accumulate: int, workers: int
) -> None:
    """Steps of ten rows over four: each row twice or three times, counted here by hand in the order of the stream."""
    shards, size = written(tmp_path, 4), 10
    loaders = [
        iter(Loader(shards, size // ranks // accumulate, 3, rank, ranks, workers, accumulate=accumulate))
        for rank in range(ranks)
    ]
    orders = [np.random.default_rng([3, epoch]).permutation(4) for epoch in range(8)]
    stream = np.concatenate(orders).tolist()
    for step in range(3):
        found = [i for _ in range(accumulate) for loader in loaders for i in next(loader).ids]
        rows = stream[step * size : (step + 1) * size]
        assert found == [row + 4 * rows[:place].count(row) for place, row in enumerate(rows)]
        assert len(set(found)) == size


def test_rows_drawn_once_in_a_step_keep_their_numbers_and_a_resumed_stream_its_ids(tmp_path: Path) -> None:
    shards = written(tmp_path, 7)
    first = [batch.ids for batch in islice(Loader(shards, 2, 1, accumulate=3), 12)]
    for step in range(4):
        taken = [row for ids in first[3 * step : 3 * step + 3] for row in ids]
        assert all(row < 7 for row in taken if [other % 7 for other in taken].count(row % 7) == 1)
    loader = Loader(shards, 2, 1, accumulate=3)
    loader.load_state_dict({**loader.state_dict(), "position": 12})
    assert [batch.ids for batch in islice(loader, 6)] == first[6:]
