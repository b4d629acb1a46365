# Batches from shards: an endless stream whose order depends on (seed, epoch) alone.
# Entry points: Loader (iterate, example, state_dict, load_state_dict), OtherData, order, rows_hash.
# Example p of the stream is row permutation(seed, p // R)[p % R]; step s of rank r takes `batch` examples from
# (s * ranks + r) * batch on. So workers do not change it, and one integer resumes it.
"""Deterministic, resumable loader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from hildanext.core.batches import stacked
from hildanext.core.types import Batch
from hildanext.data.shards import PackedRow, ShardSet
from hildanext.errors import DataError


class OtherData(DataError):
    """A saved place in rows that are not these, or in another order of them."""


@lru_cache(maxsize=4)
def order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Row numbers in the order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def _shortened(row: PackedRow, length: int) -> PackedRow:
    tokens, learn, docs = row.tokens.copy(), row.learn.copy(), row.docs.copy()
    learn[length:] = False
    docs[length:] = docs.max() + 1
    return PackedRow(tokens, learn, docs)


@dataclass(frozen=True)
class _Steps(Dataset[Batch]):
    folder: Path
    batch: int
    seed: int
    rank: int
    ranks: int
    shorten: float
    part: tuple[int, int]
    together: tuple[int, int]
    shards: ShardSet | None

    def __getitem__(self, step: int) -> Batch:
        shards = self.shards or _reopened(self.folder).part(*self.part)
        first = (step * self.ranks + self.rank) * self.batch
        picked = [self._example(shards, position) for position in range(first, first + self.batch)]
        origin, size = self.together
        begun = (step - (step - origin) % size) * self.ranks * self.batch
        ids = [self._named(index, position, begun, len(shards)) for position, (index, _) in enumerate(picked, first)]
        return stacked([row for _, row in picked], tuple(ids))

    def _named(self, index: int, position: int, begun: int, rows: int) -> int:
        earlier, place = divmod(begun, rows)
        again = position // rows - earlier
        if again and int(np.flatnonzero(order(rows, self.seed, earlier) == index)[0]) < place:
            again -= 1
        return index + again * rows

    def _example(self, shards: ShardSet, position: int) -> tuple[int, PackedRow]:
        epoch, place = divmod(position, len(shards))
        index = int(order(len(shards), self.seed, epoch)[place])
        row = shards[index]
        if self.shorten:
            rng = np.random.default_rng([self.seed, epoch, place, 1])
            if rng.random() < self.shorten:
                row = _shortened(row, int(rng.integers(1, shards.window + 1)))
        return index, row

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "shards": None}


def rows_hash(manifest: Mapping[str, Any]) -> str | None:
    """What tells one set of shards from another; None for shards from before manifests knew their files."""
    known = manifest.get("files")
    return hashlib.sha256("".join(file["sha256"] for file in known.values()).encode()).hexdigest() if known else None


@lru_cache(maxsize=4)
def _reopened(folder: Path) -> ShardSet:
    return ShardSet.open(folder)


@dataclass
class Loader:
    """Batches of `batch` rows forever. rank, ranks: this process's share; workers: reading processes; shorten: share of
    rows in [0, 1] cut to a uniform random length (LLaDA arXiv:2502.09992: 0.01). Batch.ids are the row numbers, plus
    the number of rows for each time the row was drawn before in the same `accumulate` batches of all ranks: what is
    drawn twice in one step has noise of its own each time."""

    shards: ShardSet
    batch: int
    seed: int
    rank: int = 0
    ranks: int = 1
    workers: int = 0
    shorten: float = 0.0
    accumulate: int = 1
    _step: int = field(default=0, repr=False)
    _origin: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if len(self.shards) == 0:
            raise DataError(f"{self.shards.folder}: no rows; the split is empty, prepare more documents")
        if self.batch < 1 or not 0 <= self.rank < self.ranks:
            raise ValueError(f"batch {self.batch}, rank {self.rank} of {self.ranks}")

    @property
    def epoch(self) -> float:
        """Passes over the rows so far, all ranks together."""
        return self._step * self.batch * self.ranks / len(self.shards)

    def example(self, position: int) -> tuple[int, PackedRow]:
        """(number, row) at a place of the stream."""
        return self._steps()._example(self.shards, position)

    def _steps(self) -> _Steps:
        settings = (self.batch, self.seed, self.rank, self.ranks, self.shorten)
        part = (self.shards.begin, self.shards.begin + len(self.shards))
        return _Steps(self.shards.folder, *settings, part, (self._origin, self.accumulate), self.shards)

    def __iter__(self) -> Iterator[Batch]:
        steps = self._steps()
        if self.workers == 0:
            while True:
                batch = steps[self._step]
                self._step += 1
                yield batch
        for batch in DataLoader(steps, batch_size=None, sampler=count(self._step), num_workers=self.workers):
            self._step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream, plain JSON: examples taken by all ranks, and what the order depends on."""
        return {
            "position": self._step * self.batch * self.ranks,
            "seed": self.seed,
            "rows": len(self.shards),
            "tokenizer_hash": self.shards.manifest.get("tokenizer_hash"),
            "input_hash": self.shards.manifest.get("input_hash"),
            "rows_hash": rows_hash(self.shards.manifest),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the very next example, also with another batch or ranks where the place is a whole step of it.
        OtherData where the shards or the seed are others."""
        own = self.state_dict()
        unknown = {name for name in ("rows_hash",) if None in (state.get(name), own[name])}
        changed = [name for name in own if name not in {"position", *unknown} and state.get(name) != own[name]]
        if changed:
            was, now = {name: state.get(name) for name in changed}, {name: own[name] for name in changed}
            raise OtherData(f"{self.shards.folder}: the saved place is of other data: it had {was}, here {now}")
        step, rest = divmod(int(state["position"]), self.batch * self.ranks)
        if rest:
            raise DataError(
                f"{self.shards.folder}: the saved place {state['position']} is no multiple of batch x ranks "
                f"{self.batch * self.ranks}; resume with a batch that divides it"
            )
        self._step = self._origin = step
