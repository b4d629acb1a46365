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
from hildanext.data.packing import Piece
from hildanext.data.shards import ShardSet, ShardWriter, check_tokenizer, token_type
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
