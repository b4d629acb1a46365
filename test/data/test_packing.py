# Packing against a slow oracle and its invariants: no token lost or moved, no row too long, bounded open rows.
# Entry points: pytest.
# Documents are ranges of integers, so each token tells where it came from.
"""Tests of data/packing.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hildanext.data.packing import Packer, Piece

LENGTHS = st.lists(st.integers(1, 40), max_size=40)


def documents(lengths: list[int]) -> list[Piece]:
    starts = np.cumsum([0, *lengths])
    return [
        Piece(i, np.arange(starts[i], starts[i + 1]), np.arange(starts[i], starts[i + 1]) % 3 != 0)
        for i in range(len(lengths))
    ]


def packed(packer: Packer, lengths: list[int]) -> list[list[Piece]]:
    rows = [row for document in documents(lengths) for row in packer.add(document)]
    return [*rows, *packer.finish()]


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.sampled_from(["first_fit", "concat"]), st.integers(1, 5))
def test_every_token_lands_once_with_its_mark_in_rows_of_at_most_the_window(
    lengths: list[int], method: str, lookahead: int
) -> None:
    rows = packed(Packer(16, method, lookahead), lengths)  # type: ignore[arg-type]
    tokens = [token for row in rows for piece in row for token in piece.tokens]
    assert sorted(tokens) == list(range(sum(lengths)))
    assert all(0 < sum(len(piece.tokens) for piece in row) <= 16 for row in rows)
    for piece in (piece for row in rows for piece in row):
        assert (piece.learn == (piece.tokens % 3 != 0)).all()
        assert (np.diff(piece.tokens) == 1).all()


def slow_first_fit(lengths: list[int], window: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for length in lengths:
        fitting = [row for row in rows if sum(row) + length <= window]
        (fitting[0] if fitting else rows.append([]) or rows[-1]).append(length)
    return rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 16), max_size=40))
def test_unbounded_first_fit_equals_the_textbook_one(lengths: list[int]) -> None:
    rows = [[len(piece.tokens) for piece in row] for row in packed(Packer(16, "first_fit", 1000), lengths)]
    assert sorted(map(tuple, rows)) == sorted(map(tuple, slow_first_fit(lengths, 16)))


def test_whole_documents_stay_whole_and_long_ones_are_cut_into_documents() -> None:
    rows = packed(Packer(16), [10, 37, 6])
    sizes = {tuple((piece.document, len(piece.tokens)) for piece in row) for row in rows}
    assert sizes == {((1, 16),), ((0, 10), (1, 5)), ((2, 6),)}
    assert sum(len(row) for row in rows) == 5


@settings(max_examples=40, deadline=None)
@given(LENGTHS)
def test_concat_fills_every_row_but_the_last_and_keeps_the_order(lengths: list[int]) -> None:
    rows = packed(Packer(16, "concat"), lengths)
    flat = [token for row in rows for piece in row for token in piece.tokens]
    assert flat == list(range(sum(lengths)))
    assert all(sum(len(piece.tokens) for piece in row) == 16 for row in rows[:-1])


def test_no_more_rows_are_open_than_the_lookahead_allows() -> None:
    packer, closed = Packer(16, "first_fit", 3), 0
    for opened, document in enumerate(documents([9] * 50), 1):
        closed += len(list(packer.add(document)))
        assert opened - closed <= 3


@pytest.mark.parametrize(("lookahead", "rows"), [(1, 4), (64, 3)])
def test_a_longer_lookahead_packs_tighter(lookahead: int, rows: int) -> None:
    assert len(packed(Packer(16, "first_fit", lookahead), [10, 11, 6, 5, 16])) == rows
