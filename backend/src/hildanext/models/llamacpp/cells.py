# Where a request's cells are in llama.cpp's memory: which sequences a slot of the decoder's store is, and its forwards.
# Entry points: Cells, Piece, token_bytes.
# A slot is `depth` sequences. Of the blocks of a forward the first is in k of them, the next in k - 1, the last in one:
# the last sequence holds all of a slot, the one before it all but the last block, and a block sees its first sequence.
"""State of llama.cpp's sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Never

import torch
from torch import Tensor

from hildanext.errors import ModelError
from hildanext.models.llamacpp.library import SEQUENCES, Context, Token, Weights

DEEPEST, USUAL = 8, 64
NARROW, WIDE = 64, 256


class Piece(NamedTuple):
    """One block of a row of a forward: its slot, the index of its first token, the tokens, and for each the number of
    the logits that are read there, -1 for none."""

    slot: int
    start: int
    tokens: Sequence[int]
    read: Sequence[int]


class Cells:
    """The cells of every slot (a LayerState of the store, one for all layers): a context of llama.cpp's, with `depth`
    sequences for a slot. known: how many first cells of its slot each sequence holds."""

    weights: ClassVar[Weights]
    keys: ClassVar[str]

    def __init__(self, slots: int, capacity: int) -> None:
        self.context: Context | None = None
        self.width = NARROW
        self._shape(slots, capacity)

    def _shape(self, slots: int, capacity: int) -> None:
        if slots > SEQUENCES:
            raise ModelError(f"llama.cpp: {slots} texts at once, it holds {SEQUENCES}; lower decode.requests")
        self.slots, self.capacity, self.depth = (
            slots,
            capacity,
            max(1, min(DEEPEST if self.weights.order else 1, USUAL // slots)),
        )
        self.known = [[0] * self.depth for _ in range(slots)]

    def append(self, places: Sequence[Any], *new: Tensor) -> Never:
        """ValueError: llama.cpp keeps its own; see `run`."""
        raise ValueError("Cells: llama.cpp writes its cells itself")

    def run(self, rows: Sequence[Sequence[Piece]], vocabulary: int, count: int) -> Tensor:
        """Logits [count, V] of a forward over consecutive blocks of several slots. Everything that lies in a slot
        behind the first of its blocks is dropped before; what the forward writes stays until it is dropped."""
        for row in rows:
            self._cut(row[0].slot, row[0].start)
        found = torch.zeros(count, vocabulary)
        left = [list(row) for row in rows]
        while any(left):
            batch = self._batch(left)
            context = self._opened(sum(len(piece.tokens) for part in batch for piece in part))
            tokens = [token for part in batch for token in self._tokens(context, part)]
            order = [read for part in batch for piece in part for read in piece.read if read >= 0]
            logits = context.run(tokens)
            if order == [*range(count)] and not any(left):
                return logits
            found[torch.tensor(order, dtype=torch.long)] = logits
        return found

    def _batch(self, left: list[list[Piece]]) -> list[list[Piece]]:
        room, taken = WIDE, list[list[Piece]]()
        for row in left:
            part = list[Piece]()
            while row and len(part) < self.depth and (len(row[0].tokens) <= room or not (part or taken)):
                part.append(row.pop(0))
                room -= len(part[-1].tokens)
            taken += [part] if part else []
        return taken

    def _tokens(self, context: Context, part: Sequence[Piece]) -> list[Token]:
        slot, start, own = part[0].slot, part[0].start, self.known[part[0].slot]
        last, made = (slot + 1) * self.depth, list[Token]()
        for back, piece in zip(range(len(part), 0, -1), part, strict=True):
            sequence = last - back
            if own[-back] < start:
                context.share(last - 1, sequence, own[-back], start)
            own[-back] = piece.start + len(piece.tokens)
            members = range(sequence, last)[:: self.weights.order or 1]
            made += [
                Token(token, place, members, read >= 0)
                for place, (token, read) in enumerate(zip(piece.tokens, piece.read, strict=True), piece.start)
            ]
        return made

    def _cut(self, slot: int, length: int) -> None:
        for number, known in enumerate(self.known[slot]):
            if known > length and self.context is not None:
                self.context.drop(slot * self.depth + number, length)
                self.known[slot][number] = length

    def _opened(self, width: int) -> Context:
        if self.context is None or width > self.width:
            while self.width < width:
                self.width *= 2
            self._moved(self.slots, self.capacity)
        assert self.context is not None
        return self.context

    def _moved(self, slots: int, capacity: int) -> None:
        lengths = [known[-1] for known in self.known]
        held = [
            self.context.saved((slot + 1) * self.depth - 1) if length and self.context is not None else None
            for slot, length in enumerate(lengths)
        ]
        self.context = None
        self._shape(slots, capacity)
        self.context = Context(self.weights, slots * self.depth, slots * capacity, self.width, self.keys)
        for slot, (one, length) in enumerate(zip(held, lengths, strict=False)):
            if one is not None and slot < slots:
                self.context.restore((slot + 1) * self.depth - 1, one)
                self.known[slot][-1] = length

    def commit(self, slot: int, length: int) -> None:
        """Drop what lies behind the length."""
        self._cut(slot, length)

    def move(self, source: int, target: int, length: int) -> None:
        """Let the committed cells belong to the other slot."""
        self._cut(target, 0)
        if self.context is not None and length:
            ends = [(slot + 1) * self.depth - 1 for slot in (source, target)]
            self.context.share(ends[0], ends[1], 0, length)
            self.known[target][-1] = length

    def release(self, slot: int) -> None:
        """Drop all cells of a slot."""
        self._cut(slot, 0)

    def grow(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        """Room for other slots; the cells that are committed stay."""
        for slot in range(self.slots):
            self._cut(slot, lengths[slot] if slot < len(lengths) else 0)
        if self.context is None:
            self._shape(slots, capacity)
        else:
            self._moved(slots, capacity)

    def bytes(self) -> int:
        """Of the keys and values of all cells."""
        return 0 if self.context is None else self.slots * self.capacity * token_bytes(self.weights, self.keys)


def token_bytes(weights: Weights, keys: str) -> int:
    """Bytes of the keys and values of one token."""
    return 2 * weights.layers * weights.kv_heads * weights.head_dim * (4 if keys == "float32" else 2)
