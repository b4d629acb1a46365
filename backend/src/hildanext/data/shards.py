# Packed rows on disk: flat memory-mapped token files with document offsets.
# Entry points: ShardWriter (write(row), close), ShardSet.open(folder) -> rows, part, scored_batch, check_tokenizer.
# Files: tokens.bin (uint16 where the vocabulary fits, else uint32), learn.bin (uint8, Piece.learn; absent where all 1),
# pieces.bin (int64 pairs: document, end offset), rows.bin (int64: end piece), manifest.json. Padding is not stored.
# Flat files and not Arrow: 2-4 bytes a token, opened by mmap at once, resumed by one integer, no dependency.
"""Shards of packed rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hildanext.core.batches import stacked
from hildanext.core.types import Batch
from hildanext.data.packing import FILLER, Piece
from hildanext.data.storage import is_remote
from hildanext.data.template import template_hash
from hildanext.data.tokenizers import load_tokenizer, tokenizer_hash
from hildanext.disk import damage, fingerprints, write_atomic
from hildanext.errors import DataError


class PackedRow(NamedTuple):
    """One row of length L. tokens int64; learn bool; docs int64: 0, 1, ... in the row, padding one more."""

    tokens: NDArray[np.int64]
    learn: NDArray[np.bool_]
    docs: NDArray[np.int64]


def token_type(vocab_size: int) -> np.dtype[Any]:
    """uint16 for a vocabulary of at most 65,536 entries, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


@dataclass
class ShardWriter:
    """Writes rows to a folder in bounded memory; close() writes the manifest and makes the folder readable."""

    folder: Path
    window: int
    vocab_size: int
    pad_id: int
    tokens: int = 0
    pieces: int = 0
    rows: int = 0
    learned: int = 0
    filler: int = 0
    _files: dict[str, BinaryIO] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: (self.folder / f"{name}.bin").open("wb") for name in ("tokens", "learn", "pieces", "rows")}

    def write(self, row: list[Piece]) -> None:
        """Append one row. ValueError where it is longer than the window."""
        tokens = np.concatenate([piece.tokens for piece in row])
        learn = np.concatenate([piece.learn for piece in row]).astype(np.uint8)
        if len(tokens) > self.window:
            raise ValueError(f"row of {len(tokens)} tokens in a window of {self.window}")
        ends = self.tokens + np.cumsum([len(piece.tokens) for piece in row])
        documents = np.array([piece.document for piece in row])
        self.tokens += len(tokens)
        self.pieces += len(row)
        self.rows += 1
        self.learned += int((learn != 0).sum())
        self.filler += int((learn == FILLER).sum())
        self._files["tokens"].write(tokens.astype(token_type(self.vocab_size)).tobytes())
        self._files["learn"].write(learn.tobytes())
        self._files["pieces"].write(np.stack([documents, ends], axis=1).astype(np.int64).tobytes())
        self._files["rows"].write(np.array([self.pieces], dtype=np.int64).tobytes())

    def close(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Close the files and write manifest.json: counts, fill rate, and `known`. Returns the manifest."""
        for file in self._files.values():
            file.close()
        if self.learned == self.tokens and not self.filler:
            (self.folder / "learn.bin").unlink()
        manifest = {
            "format": 1,
            "window": self.window,
            "vocab_size": self.vocab_size,
            "pad_id": self.pad_id,
            "rows": self.rows,
            "pieces": self.pieces,
            "tokens": self.tokens,
            "learned": self.learned,
            "filler": self.filler,
            "fill_rate": self.tokens / (self.rows * self.window) if self.rows else 0.0,
            "files": fingerprints(self.folder, ("manifest.json",)),
            **known,
        }
        write_atomic(self.folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        return manifest


def _map(path: Path, kind: Any) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")


@dataclass(frozen=True)
class ShardSet:
    """Rows of one folder of shards, memory-mapped: len(), [i] -> PackedRow; documents() gives the documents back.
    begin, stop: the rows that belong to it; None: all from begin on."""

    folder: Path
    manifest: dict[str, Any]
    _tokens: NDArray[Any]
    _learn: NDArray[np.uint8] | None
    _pieces: NDArray[np.int64]
    _rows: NDArray[np.int64]
    begin: int = 0
    stop: int | None = None

    @classmethod
    def open(cls, folder: Path | str) -> ShardSet:
        """The shards of a folder. DataError where there are none or a file is shorter than its manifest says."""
        path = Path(folder)
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            tokens = _map(path / "tokens.bin", token_type(int(manifest["vocab_size"])))
            learn = _map(path / "learn.bin", np.uint8) if (path / "learn.bin").exists() else None
            pieces = _map(path / "pieces.bin", np.int64).reshape(-1, 2)
            rows = _map(path / "rows.bin", np.int64)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no shards here ({error.filename} is missing); run `hildanext tokenize`") from None
        except (json.JSONDecodeError, KeyError, ValueError) as error:
            raise DataError(f"{path}: the shards cannot be read ({error}); run `hildanext tokenize` again") from error
        found = (len(tokens), len(pieces), len(rows), len(tokens if learn is None else learn))
        wanted = tuple(manifest[name] for name in ("tokens", "pieces", "rows", "tokens"))
        if found != wanted:
            raise DataError(f"{path}: files hold {found} tokens, pieces, rows, marks; the manifest says {wanted}")
        return cls(path, manifest, tokens, learn, pieces, rows)

    def require_whole(self) -> None:
        """DataError where a file is not as the manifest says it was written. Shards from before manifests knew their
        files pass."""
        found = damage(self.folder, self.manifest.get("files", {}), "manifest.json")
        if found:
            raise DataError(f"{self.folder}: damaged: {found}; restore the file or run `hildanext tokenize` again")

    @property
    def window(self) -> int:
        """Row length L, tokens."""
        return int(self.manifest["window"])

    @property
    def tokenizer(self) -> str:
        """Folder of the tokenizer they were made with; of shards fetched from a storage the one fetched with them."""
        named = str(self.manifest.get("tokenizer", ""))
        return str(self.folder.parent / "tokenizer") if is_remote(named) else named

    def part(self, begin: int, stop: int) -> ShardSet:
        """The rows [begin, stop) of this set, numbered from 0."""
        return replace(self, begin=self.begin + begin, stop=self.begin + stop)

    def __len__(self) -> int:
        return (len(self._rows) if self.stop is None else self.stop) - self.begin

    def _place(self, index: int) -> tuple[int, NDArray[np.int64]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self.begin + index
        first, last = int(self._rows[row - 1]) if row else 0, int(self._rows[row])
        start = self._end(first - 1)
        return start, self._pieces[first:last, 1] - start

    def filler(self, index: int) -> NDArray[np.bool_]:
        """[L] bool: where row `index` holds end tokens that only fill a block. In shards from before those were marked:
        all but the first of the end tokens that close a document, where the manifest says that blocks were filled."""
        start, ends = self._place(index)
        found = np.zeros(self.window, dtype=np.bool_)
        if "filler" in self.manifest:
            if self._learn is not None:
                found[: ends[-1]] = self._learn[start : start + ends[-1]] == FILLER
        elif self.manifest.get("pad_to_block"):
            closing = self._tokens[start : start + ends[-1]] == self.manifest["pad_id"]
            for first, last in zip((0, *ends[:-1]), ends, strict=True):
                run = int(np.argmin(closing[first:last][::-1])) if not closing[first:last].all() else last - first
                found[last - run + 1 : last] = True
        return found

    def __getitem__(self, index: int) -> PackedRow:
        start, ends = self._place(index)
        length = int(ends[-1])
        tokens = np.full(self.window, self.manifest["pad_id"], dtype=np.int64)
        learn = np.zeros(self.window, dtype=np.bool_)
        tokens[:length] = self._tokens[start : start + length]
        learn[:length] = True if self._learn is None else self._learn[start : start + length] != 0
        docs = np.searchsorted(ends, np.arange(self.window), side="right").astype(np.int64)
        return PackedRow(tokens, learn, docs)

    def _end(self, piece: int) -> int:
        return int(self._pieces[piece, 1]) if piece >= 0 else 0

    def documents(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """(index in the input file, all its tokens) of every document, in order; its pieces joined."""
        order = np.argsort(self._pieces[:, 0], kind="stable")
        bounds = np.flatnonzero(np.diff(self._pieces[order, 0])) + 1
        for group in np.split(order, bounds) if len(order) else []:
            cuts = [self._tokens[self._end(int(piece) - 1) : self._end(int(piece))] for piece in group]
            yield int(self._pieces[group[0], 0]), np.concatenate(cuts).astype(np.int64)

    def texts(self, tokenizer: Any) -> Iterator[tuple[int, str]]:
        """(index in the input file, text) of every document, without the start and end tokens that tokenize added."""
        start = list(self.manifest.get("document_start", ()))
        for index, tokens in self.documents():
            kept = len(tokens)
            while kept and tokens[kept - 1] == self.manifest["pad_id"]:
                kept -= 1
            first = len(start) if tokens[: len(start)].tolist() == start else 0
            text = tokenizer.decode(tokens[first:kept].tolist(), clean_up_tokenization_spaces=False)
            yield index, text


def scored_batch(shards: ShardSet, rows: Sequence[int], mask_id: int) -> Batch:
    """Rows as they are scored: what only fills blocks is [MASK] in both halves and not learned, so that it neither
    counts nor shows where a text ends, as in decoding. Source: docs/training.md, what a block is filled with."""
    made = stacked((shards[row] for row in rows), tuple(rows))
    filler = torch.from_numpy(np.stack([shards.filler(row) for row in rows]))
    return Batch(made.tokens.masked_fill(filler, mask_id), made.learn & ~filler, made.docs, made.ids)


def check_tokenizer(shards: ShardSet, tokenizer: Any) -> None:
    """DataError unless the shards were made with this tokenizer (a folder or a loaded tokenizer), and their chats with
    its chat template."""
    tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    own, found = shards.manifest["tokenizer_hash"], tokenizer_hash(tokenizer)
    if own != found:
        raise DataError(
            f"{shards.folder}: made with tokenizer {own[:12]}, the model's is {found[:12]}; "
            "tokenize again with --set tokenize.tokenizer=<the model's folder>"
        )
    template, given = shards.manifest.get("chat_template"), template_hash(tokenizer)
    if template is not None and template != given:
        raise DataError(
            f"{shards.folder}: its chats were written with chat template {template[:12]}, the model's is {given[:12]}; "
            "tokenize again with --set tokenize.tokenizer=<the model's folder>"
        )
