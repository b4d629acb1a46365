# A share of every batch from earlier data: other sets of shards, or rows that this run has seen before.
# Entry points: Replayed (in the place of a Loader), Earlier.
# Slot g of the run is a replayed one where floor((g + 1) share) > floor(g share), so each batch has its share to within
# one row, and which row stands there follows from (seed, g): nothing is buffered, one integer resumes it.
"""Replay of earlier rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from hildanext.core.batches import stacked
from hildanext.core.types import Batch
from hildanext.data.loader import Loader, OtherData, order, rows_hash
from hildanext.data.shards import PackedRow, ShardSet
from hildanext.errors import DataError

REPLAYED = 1 << 40
"""Ids of replayed rows begin here: their noise is their own, whatever the row's number in its shards."""


@dataclass(frozen=True)
class Earlier:
    """A source of replayed rows. shards: None for the rows that the run itself has seen; share: of every batch."""

    shards: ShardSet | None
    share: Fraction


@dataclass
class Replayed:
    """Batches of `loader`'s shards, seed and size, with a share of their slots filled from `earlier`. Rows are read in
    this process. Source: docs/training.md, replay."""

    loader: Loader
    earlier: Sequence[Earlier]
    _step: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self.share = sum((one.share for one in self.earlier), Fraction(0))
        if not 0 < self.share < 1:
            raise ValueError(f"replay: the shares add up to {float(self.share)}, between 0 and 1 is expected")

    @property
    def slots(self) -> int:
        """Rows of a step, all ranks together."""
        return self.loader.batch * self.loader.ranks

    def __iter__(self) -> Iterator[Batch]:
        while True:
            first = (self._step * self.loader.ranks + self.loader.rank) * self.loader.batch
            picked = [self._row(slot) for slot in range(first, first + self.loader.batch)]
            self._step += 1
            yield stacked([row for row, _ in picked], tuple(name for _, name in picked))

    def _before(self, slot: int) -> int:
        return int(slot * self.share)

    def _row(self, slot: int) -> tuple[PackedRow, int]:
        number = self._before(slot)
        if self._before(slot + 1) == number:
            position, rows = slot - number, len(self.loader.shards)
            index, row = self.loader.example(position)
            return row, index + position // rows * rows
        kind, place = self._source(number)
        shards = self.earlier[kind].shards
        return (self._seen(slot, number) if shards is None else _at(shards, self.loader.seed + 1 + kind, place)), (
            REPLAYED * (kind + 1) + place
        )

    def _source(self, number: int) -> tuple[int, int]:
        left = self.share
        for kind, one in enumerate(self.earlier):
            part = one.share / left
            taken = int(number * part)
            if int((number + 1) * part) > taken:
                return kind, taken
            number, left = number - taken, left - one.share
        raise AssertionError("the last source takes what is left")

    def _seen(self, slot: int, number: int) -> PackedRow:
        begun = slot - slot % self.slots
        seen = begun - self._before(begun)
        place = int(np.random.default_rng([self.loader.seed, number, 2]).integers(seen)) if seen else number
        return self.loader.example(place)[1]

    def state_dict(self) -> dict[str, Any]:
        """As Loader.state_dict, and what is replayed."""
        position = self._step * self.slots
        replayed = [[str(one.share), *_identity(one.shards)] for one in self.earlier]
        return {**self.loader.state_dict(), "position": position, "replay": replayed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Loader.load_state_dict. OtherData where other rows, or other shares of them, were replayed."""
        own = self.state_dict()["replay"]
        if state.get("replay") != own:
            raise OtherData(f"train.replay: the saved place replayed {state.get('replay')}, here {own}")
        self.loader.load_state_dict({name: value for name, value in state.items() if name != "replay"})
        self._step = int(state["position"]) // self.slots


def _identity(shards: ShardSet | None) -> tuple[Any, ...]:
    return ("seen",) if shards is None else (len(shards), rows_hash(shards.manifest))


def _at(shards: ShardSet, seed: int, position: int) -> PackedRow:
    epoch, place = divmod(position, len(shards))
    return shards[int(order(len(shards), seed, epoch)[place])]


def earlier_rows(shards: ShardSet | None, share: float, like: ShardSet) -> Earlier:
    """A source of replay for a run over `like`. DataError where its rows have another length or tokenizer, or none."""
    if shards is not None:
        if not len(shards):
            raise DataError(f"train.replay: {shards.folder} has no rows; give a split that has")
        for what in ("window", "tokenizer_hash"):
            if shards.manifest.get(what) != like.manifest.get(what):
                raise DataError(
                    f"train.replay: {shards.folder} has {what} {shards.manifest.get(what)}, the rows trained on"
                    f" {like.manifest.get(what)}; tokenize it as those were"
                )
    return Earlier(shards, Fraction(str(share)))
