# Packing: documents -> pieces of at most L tokens -> rows of L, each row a list of pieces.
# Entry points: Piece, FILLER, pieces_of, Packer (first_fit | concat): add(piece) -> closed rows, finish() -> the rest.
# A document longer than L is cut; every piece is a document of its own to the attention mask.
"""Packing of documents into rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Learn = NDArray[Any]
FILLER = 2


class Piece(NamedTuple):
    """Consecutive tokens of one document: tokens [n] int64, learn [n]: 0 no, 1 yes, FILLER: learned, but it only fills
    the last block, behind the document's end, and is never scored; document: its index in the input file."""

    document: int
    tokens: Tokens
    learn: Learn


def pieces_of(piece: Piece, window: int) -> Iterator[Piece]:
    """The piece itself, or its consecutive cuts of at most `window` tokens."""
    for start in range(0, len(piece.tokens), window):
        cut = slice(start, start + window)
        yield Piece(piece.document, piece.tokens[cut], piece.learn[cut])


@dataclass
class Packer:
    """Rows of at most `window` tokens. first_fit: a piece goes whole into the first open row with room; beyond
    `lookahead` open rows the fullest is closed. concat: rows are filled to the brim, documents cut at their ends."""

    window: int
    method: Literal["first_fit", "concat"] = "first_fit"
    lookahead: int = 64
    _rows: list[list[Piece]] = field(default_factory=list)
    _room: list[int] = field(default_factory=list)

    def add(self, document: Piece) -> Iterator[list[Piece]]:
        """Place one document; yields the rows this closes."""
        if self.method == "concat":
            yield from self._add_concat(document)
            return
        for piece in pieces_of(document, self.window):
            yield from self._place(piece)

    def _place(self, piece: Piece) -> Iterator[list[Piece]]:
        needed = len(piece.tokens)
        index = next((i for i, room in enumerate(self._room) if room >= needed), len(self._rows))
        if index == len(self._rows):
            self._rows.append([])
            self._room.append(self.window)
        self._rows[index].append(piece)
        self._room[index] -= needed
        if self._room[index] == 0:
            yield self._close(index)
        elif len(self._rows) > self.lookahead:
            yield self._close(self._room.index(min(self._room)))

    def _add_concat(self, document: Piece) -> Iterator[list[Piece]]:
        start = 0
        while start < len(document.tokens):
            if not self._rows:
                self._rows, self._room = [[]], [self.window]
            cut = slice(start, start + self._room[0])
            piece = Piece(document.document, document.tokens[cut], document.learn[cut])
            self._rows[0].append(piece)
            self._room[0] -= len(piece.tokens)
            start += len(piece.tokens)
            if self._room[0] == 0:
                yield self._close(0)

    def _close(self, index: int) -> list[Piece]:
        del self._room[index]
        return self._rows.pop(index)

    def finish(self) -> Iterator[list[Piece]]:
        """The rows still open, in the order they were opened."""
        yield from self._rows
        self._rows, self._room = [], []
