# Arrays written once for rows of tokens, found again by the hash of the row: a parent's states, the order of decoding.
# Entry points: RowStore.begin (to write), RowStore.open (to read), missing_rows, row_key, row_length, bytes_needed.
# Files: data.bin (one array after the other), index.bin (SHA-256 of the row, offset, length: 48 bytes each), rows.json.
# Data is flushed before its index entry, so a killed writer loses at most the rows since; the next one goes on.
"""Rows kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hildanext.core.batches import stacked
from hildanext.core.types import Batch
from hildanext.data.shards import ShardSet
from hildanext.disk import hold, write_atomic
from hildanext.errors import DataError

MANIFEST, DATA, INDEX, LOCK = "rows.json", "data.bin", "index.bin", ".lock"
ENTRY = np.dtype([("key", "S32"), ("start", "<i8"), ("length", "<i8")])
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int16": np.dtype("<i2"),
}


def row_length(learn: NDArray[np.bool_]) -> int:
    """Positions of a row up to its last learned one, a count: what is written of it. learn [L] bool."""
    return len(learn) - int(learn[::-1].argmax()) if learn.any() else 0


def row_key(tokens: NDArray[np.int64], docs: NDArray[np.int64], length: int) -> bytes:
    """SHA-256 of a row's first `length` token and document ids; trailing zero bytes stay."""
    parts = (np.ascontiguousarray(part[:length], dtype="<i8").tobytes() for part in (tokens, docs))
    return hashlib.sha256(b"".join(parts)).digest()


def bytes_needed(positions: int, dtype: str, shape: Sequence[int]) -> int:
    """Bytes of the arrays of so many positions."""
    return positions * math.prod(shape) * DTYPES[dtype].itemsize


@dataclass
class RowStore:
    """One folder of rows. facts: what was written of whom; shape: of the array of one position; places: (offset,
    length), in positions, by key."""

    folder: Path
    facts: dict[str, Any]
    places: dict[bytes, tuple[int, int]]
    _files: tuple[BinaryIO, BinaryIO] | None = None
    _lock: BinaryIO | None = None
    _pending: list[bytes] = field(default_factory=list)
    _map: NDArray[Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one position."""
        return tuple(self.facts["shape"])

    @property
    def dtype(self) -> str:
        """A name of DTYPES."""
        return str(self.facts["dtype"])

    @property
    def positions(self) -> int:
        """Positions written, a count."""
        return max((start + length for start, length in self.places.values()), default=0)

    @classmethod
    def open(cls, folder: Path, kind: str) -> RowStore:
        """The rows of a folder. DataError where there are none, or another kind."""
        try:
            facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            places = _places(folder)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: no {kind} here ({error}); run `hildanext {kind}` first") from None
        if facts.get("kind") != kind:
            raise DataError(
                f"{folder}: holds {facts.get('kind')}, not {kind}; name the folder that `hildanext {kind}` made"
            )
        return cls(folder, facts, places)

    @classmethod
    def begin(cls, folder: Path, facts: Mapping[str, Any]) -> RowStore:
        """A store to add to, new or gone on with. facts: kind, dtype, shape and whatever must be the same.
        DataError where the folder holds rows of other facts, or another process writes there."""
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder / LOCK)
        if lock is None:
            raise DataError(f"{folder}: another process is writing there; wait for it or name another folder")
        if (folder / MANIFEST).exists():
            known = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            other = [name for name in {**known, **facts} if known.get(name) != facts.get(name)]
            if other:
                lock.close()
                said = "; ".join(f"{name} {known.get(name)}, now {facts.get(name)}" for name in other)
                raise DataError(f"{folder}: was written of other things ({said}); name another folder")
        else:
            write_atomic(folder / MANIFEST, json.dumps(dict(facts), indent=2) + "\n")
        store = cls(folder, dict(facts), _places(folder), _lock=lock)
        store._files = store._appending()
        return store

    def _appending(self) -> tuple[BinaryIO, BinaryIO]:
        size = bytes_needed(1, self.dtype, self.shape)
        files = (self.folder / DATA).open("ab"), (self.folder / INDEX).open("ab")
        for file, wanted in zip(files, (self.positions * size, len(self.places) * ENTRY.itemsize), strict=True):
            file.truncate(wanted)
        return files

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    def add(self, key: bytes, values: Tensor) -> None:
        """Append the array [n, *shape] of a row; one that is there is left alone. Floats are rounded to the dtype."""
        if key in self.places or self._files is None:
            return
        values = values.detach().cpu()
        if self.dtype == "bfloat16":
            raw = values.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        else:
            raw = values.numpy().astype(DTYPES[self.dtype]).tobytes()
        start = self.positions if not self._pending else sum(self.places[self._pending[-1]])
        self.places[key] = (start, len(values))
        self._files[0].write(raw)
        self._pending.append(key)

    def flush(self) -> None:
        """Write what was added: data first, then its index."""
        if self._files is None:
            return
        data, index = self._files
        data.flush()
        os.fsync(data.fileno())
        entries = np.array([(key, *self.places[key]) for key in self._pending], dtype=ENTRY)
        index.write(entries.tobytes())
        index.flush()
        self._pending = []

    def close(self) -> None:
        """Flush and let others write."""
        self.flush()
        for file in (*(self._files or ()), *([self._lock] if self._lock else [])):
            file.close()
        self._files = self._lock = None

    def read(self, key: bytes, part: Sequence[int] = ()) -> Tensor | None:
        """The array [n, *shape] of a row, float32 or int64; None where it was not written. part: entries of the first
        axis of `shape`, empty: all. Read through a memory map."""
        if key not in self.places:
            return None
        if self._map is None:
            kind = DTYPES[self.dtype]
            path = self.folder / DATA
            flat: Any = np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.zeros(0, dtype=kind)
            self._map = flat[: self.positions * math.prod(self.shape)].reshape(-1, *self.shape)
        start, length = self.places[key]
        found = self._map[start : start + length]
        made = torch.from_numpy(np.array(found[:, list(part)] if part else found))
        if self.dtype == "bfloat16":
            return made.view(torch.bfloat16).float()
        return made.long() if self.dtype == "int16" else made.float()

    def rows(self, batch: Batch, part: Sequence[int] = ()) -> Tensor:
        """As core.types.Kept.rows; 0 behind what was written of a row."""
        shape = (len(part), *self.shape[1:]) if part else self.shape
        dtype = torch.long if self.dtype == "int16" else torch.float32
        made = torch.zeros(*batch.tokens.shape, *shape, dtype=dtype)
        for index, (key, length) in enumerate(_keys(batch)):
            found = self.read(key, part)
            if found is None:
                row = batch.ids[index] if batch.ids else index
                raise DataError(
                    f"{self.folder}: nothing was written of row {row}; the shards are others, or rows are shortened"
                    f" (train.shorten must be 0): run `hildanext {self.facts['kind']}` on these"
                )
            made[index, :length] = found
        return made.to(batch.tokens.device)

    def known(self, batch: Batch) -> Tensor:
        """As core.types.Kept.known."""
        return torch.tensor([key in self.places for key, _ in _keys(batch)], device=batch.tokens.device)


def _keys(batch: Batch) -> Iterator[tuple[bytes, int]]:
    arrays = zip(*(part.cpu().numpy() for part in (batch.tokens, batch.docs, batch.learn)), strict=True)
    for tokens, docs, learn in arrays:
        length = row_length(learn)
        yield row_key(tokens, docs, length), length


def _places(folder: Path) -> dict[bytes, tuple[int, int]]:
    path = folder / INDEX
    raw = path.read_bytes() if path.exists() else b""
    entries = np.frombuffer(raw[: len(raw) // ENTRY.itemsize * ENTRY.itemsize], dtype=ENTRY)
    return {bytes(key).ljust(32, b"\0"): (int(start), int(length)) for key, start, length in entries}


def missing_rows(store: RowStore, shards: ShardSet, at_once: int, bar: Any) -> Iterator[Batch]:
    """The rows that are not in the store, `at_once` of them in a batch, ids their numbers; the bar moves with them."""
    rows, ids = [], []
    for index in range(len(shards)):
        row = shards[index]
        if row_key(row.tokens, row.docs, row_length(row.learn)) not in store:
            rows.append(row)
            ids.append(index)
        if rows and (len(rows) == at_once or index + 1 == len(shards)):
            yield stacked(rows, tuple(ids))
            rows, ids = [], []
        bar.advance()
