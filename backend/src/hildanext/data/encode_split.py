# One prepared file -> shards: reading, encoding, block filling, packing, counting.
# Entry points: SplitEncoder(settings, tokenizer, hash, place).encode(path, facts, folder, bar), batch, add; Encoded.
# Reading and packing go on in this thread while another encodes the next batch (the Rust tokenizer uses every core and
# holds no Python lock); memory is bounded by two batches and the open rows. Tokens in = tokens packed.
"""Encoding one split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hildanext.config.data import TokenizeConfig
from hildanext.data.chat import Rendered, Turns, cut_off, each_turn, fit
from hildanext.data.document import Document, Message, from_json
from hildanext.data.packing import FILLER, Packer, Piece
from hildanext.data.shards import ShardWriter
from hildanext.data.template import ChatRefused, template_hash
from hildanext.data.tokenizers import begun, document_start, encode_texts, end_of_document
from hildanext.errors import DataError
from hildanext.progress import Bar

NAMED = 20
Marked = tuple[list[int], list[int]]
Encoded = list[Marked] | str
"""Of one document: its pieces, (ids, marks) each, or why there are none."""


@dataclass
class SplitEncoder:
    """Encodes and packs one file after another with one tokenizer; `place` is where that tokenizer will lie."""

    settings: TokenizeConfig
    tokenizer: Any
    hash: str
    place: str
    counts: Counter[str] = field(default_factory=Counter)
    refused: list[list[str]] = field(default_factory=list)
    as_text: bool = True

    def __post_init__(self) -> None:
        self.start, self.end = document_start(self.tokenizer), end_of_document(self.tokenizer)
        self.vocabulary = len(self.tokenizer)

    def encode(
        self, path: Path, facts: dict[str, Any], folder: Path, bar: Bar, found: Iterator[list[Encoded]] | None = None
    ) -> dict[str, Any]:
        """Shards of one prepared file, whose manifest entry is `facts`, in `folder`; found: its documents where they
        were encoded elsewhere. Returns their manifest. DataError where pre-tokenised ids are of another tokenizer or
        outside the vocabulary."""
        settings, self.counts, self.refused = self.settings, Counter(), []
        self.as_text = not path.stem.startswith("sft")
        writer = ShardWriter(folder, settings.window, self.vocabulary, self.end)
        packer = Packer(settings.window, settings.packing, settings.lookahead)
        for document in self._all_pieces(self._encoded(path) if found is None else found, bar):
            for row in packer.add(document):
                writer.write(row)
        for row in packer.finish():
            writer.write(row)
        self._refuse_outside(path)
        known = {name: self.counts[name] for name in ("documents_in", "documents", "tokens_in")}
        return writer.close({
            "tokenizer": self.place,
            "tokenizer_hash": self.hash,
            "document_start": self.start,
            "packing": settings.packing,
            "append_eos": settings.append_eos,
            "pad_to_block": self._block,
            "input_hash": facts["sha256"],
            **known,
            "dropped": {name[5:]: count for name, count in self.counts.items() if name.startswith("drop ")},
            "replaced_ids": self.counts["replaced_ids"],
            "shortened": self.counts["shortened"],
            "dropped_turns": self.counts["dropped_turns"],
            "chat_template": template_hash(self.tokenizer) if self.counts["chats"] else None,
            "refused": self.refused,
        })  # fmt: skip

    def _all_pieces(self, batches: Iterator[list[Encoded]], bar: Bar) -> Iterator[Piece]:
        number = 0
        for batch in batches:
            for encoded in batch:
                yield from self._pieces(number, encoded)
                number += 1
            bar.advance(len(batch))

    def _encoded(self, path: Path) -> Iterator[list[Encoded]]:
        with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self.batch, self._read(file))
            while batch := waiting.result():
                waiting = pool.submit(self.batch, self._read(file))
                yield batch

    def add(self, counts: Counter[str], refused: list[list[str]]) -> None:
        """Count what was counted elsewhere."""
        self.counts += counts
        self.refused = [*self.refused, *refused][:NAMED]

    def _read(self, file: BinaryIO) -> list[Document]:
        return [from_json(line) for line in islice(file, self.settings.batch_documents)]

    @property
    def _block(self) -> int:
        return self.settings.pad_text_to_block if self.as_text else self.settings.pad_to_block or 0

    def batch(self, documents: Sequence[Document]) -> list[Encoded]:
        """The documents encoded; what is cut or refused is counted."""
        texts = encode_texts(self.tokenizer, [document.text for document in documents if document.text is not None])
        encoded = iter(texts)
        return [self._one(document, encoded) for document in documents]

    def _one(self, document: Document, texts: Iterator[list[int]]) -> Encoded:
        if document.messages is not None:
            return self._chat(document)
        ids = list(document.tokens) if document.tokens is not None else next(texts)
        self._check_origin(document)
        learn = [int(flag) for flag in document.learn or [True] * len(ids)]
        if self.settings.append_eos and (not ids or ids[-1] != self.end):
            ids.append(self.end)
        if not ids:
            return "no tokens"
        learn += (learn[-1:] or [1]) * (len(ids) - len(learn))
        whole, given = begun(ids, self.tokenizer, self.start), len(self.start)
        if given:
            learn = [0] * given + learn[given - (len(whole) - len(ids)) :]
        return [self._filled(whole, learn)]

    def _check_origin(self, document: Document) -> None:
        origin = document.metadata.get("tokenizer_hash") if document.tokens is not None else None
        if origin is not None and origin != self.hash:
            raise DataError(
                f"{document.source} {document.id}: its token ids are of tokenizer {str(origin)[:12]}, this one is "
                f"{self.hash[:12]}; give that tokenizer or the text"
            )

    def _chat(self, document: Document) -> Encoded:
        messages = document.messages or ()
        chats = each_turn(messages) if self.settings.turns == "each" else [messages]
        try:
            fitted = [self._fitted(chat, document.tools) for chat in chats]
        except ChatRefused as error:
            self.refused += [[document.id, str(error)]] if len(self.refused) < NAMED else []
            return "refused by the chat template"
        found = [
            (rendered, cut_off(chat)) for rendered, chat in zip(fitted, chats, strict=True) if rendered is not None
        ]
        self.counts["chats"] += bool(found)
        self.counts["dropped_turns"] += len(fitted) - len(found) if found else 0
        flagged = any(message.get("learn") is False for message in messages)
        if not found:
            return "longer than the window"
        marked = [(self._marked_chat(rendered, flagged, cut), cut) for rendered, cut in found]
        return [one for one, cut in marked if not cut or any(one[1])] or "cut off within its first block"

    def _fitted(self, messages: Sequence[Message], tools: tuple[Any, ...] | None) -> Rendered | None:
        settings, room = self.settings, self.settings.window - int(self.as_text)
        turns: Turns = "all" if settings.turns == "all" else "last"
        whole = fit(messages, self.tokenizer, room, turns, "drop", tools)
        if whole is not None or settings.over_length == "drop":
            return whole
        shorter = fit(messages, self.tokenizer, room, turns, settings.over_length, tools)
        self.counts["shortened"] += shorter is not None
        return shorter

    def _marked_chat(self, rendered: Rendered, flagged: bool, cut: bool) -> Marked:
        learn = [1] * len(rendered.ids) if self.as_text and not flagged else [int(flag) for flag in rendered.learn]
        if cut:  # no end to learn, and nothing to fill its last block with: whole blocks stay
            whole = len(learn) - len(learn) % (self._block or 1)
            return rendered.ids[:whole], learn[:whole]
        return (
            self._filled([*rendered.ids, self.end], [*learn, 1]) if self.as_text else self._filled(rendered.ids, learn)
        )

    def _filled(self, ids: list[int], learn: list[int]) -> Marked:
        missing = -len(ids) % self._block if self._block else 0
        mark = FILLER if self.as_text is False or learn[-1:] != [0] else 0
        return ids + [self.end] * missing, learn + [mark] * missing

    def _pieces(self, number: int, encoded: Encoded) -> Iterator[Piece]:
        self.counts["documents_in"] += 1
        if isinstance(encoded, str):
            self.counts[f"drop {encoded}"] += 1
            return
        self.counts["documents"] += 1
        for ids, learn in encoded:
            tokens = self._in_range(np.array(ids, dtype=np.int64))
            self.counts["tokens_in"] += len(tokens)
            yield Piece(number, tokens, np.array(learn, dtype=np.uint8))

    def _in_range(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(tokens) or (tokens.min() >= 0 and tokens.max() < self.vocabulary):
            return tokens
        outside = (tokens < 0) | (tokens >= self.vocabulary)
        self.counts["replaced_ids"] += int(outside.sum())
        return np.where(outside, self.end, tokens)

    def _refuse_outside(self, path: Path) -> None:
        if self.counts["replaced_ids"] and self.settings.out_of_range == "refuse":
            raise DataError(
                f"{path}: {self.counts['replaced_ids']} ids of pre-tokenised documents are outside the vocabulary of "
                f"{self.vocabulary}; give the tokenizer they were made with, or --set tokenize.out_of_range=replace"
            )
