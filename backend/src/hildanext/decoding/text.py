# Text of committed tokens, piece by piece: no half characters, no text after a stop string.
# Entry points: TextStream.
# Text is decoded behind the last tokens of the prompt, because decoders treat a leading space by what precedes it.
# What is shown depends on the tokens alone, never on where a block ends: what later tokens may change is held back.
"""Incremental detokenisation with stop strings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CONTEXT_TOKENS = 8
BROKEN = "\ufffd"
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_OWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_REST = [byte for byte in range(256) if byte not in _OWN]
LETTERS = {chr(byte): byte for byte in _OWN} | {chr(256 + place): byte for place, byte in enumerate(_REST)}
"""The alphabet in which byte-level tokenizers write bytes."""


@dataclass
class TextStream:
    """Turns token ids into text deltas. stopped: a stop string was met, and the text ends where the first one begins;
    ids: the tokens whose text was kept; settled: how many of them can no longer become part of a stop string; lead:
    what was taken from the prompt's end to be written with the text, and is dropped from it."""

    tokenizer: Any
    prompt: Sequence[int]
    stops: Sequence[str] = ()
    hidden: frozenset[int] = frozenset()
    ids: list[int] = field(default_factory=list)
    text: str = ""
    stopped: bool = False
    settled: int = 0
    lead: str = ""
    _context: list[int] = field(default_factory=list)
    _before: str = ""
    _half: str = ""

    def __post_init__(self) -> None:
        start = max(0, len(self.prompt) - CONTEXT_TOKENS)
        while start and (self._is_byte(self.prompt[start]) or not self._decode(self.prompt[start:])):
            start -= 1
        self._context = list(self.prompt[start:])
        prefix = self._decode(self._context)
        self._before = prefix.rstrip(BROKEN)
        self._half = prefix[len(self._before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        if self.tokenizer is None:
            return ""
        shown = [token for token in ids if token not in self.hidden]
        return str(self.tokenizer.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _behind_prompt(self, ids: Sequence[int]) -> str:
        return self._decode([*self._context, *ids])[len(self._before) :].removeprefix(self._half)

    def _added(self, ids: Sequence[int]) -> str:
        return self._behind_prompt(ids).removeprefix(self.lead)

    def _is_byte(self, token: int) -> bool:
        named = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        return named is not None and BYTE.fullmatch(str(named(token))) is not None

    def piece(self, token: int) -> str:
        """The text of one token behind other text, so that a leading space is kept; special tokens by their names."""
        return self._behind_prompt([token]) or str(self.tokenizer.decode([token])) if self.tokenizer else ""

    def shown(self, token: int) -> str:
        """What one token adds behind other text; "" for tokens that are no part of a text."""
        return self._behind_prompt([token])

    def raw(self, token: int) -> tuple[int, ...] | None:
        """The bytes of a token that is no whole characters; None for one that is, or where they cannot be told."""
        named = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        if named is None or BROKEN not in self._decode([token]):
            return None
        name = str(named(token))
        if BYTE.fullmatch(name):
            return (int(name[3:5], 16),)
        return tuple(LETTERS[letter] for letter in name) if LETTERS.keys() >= set(name) else None

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The text that `ids` add for good; with `last` nothing is held back. After a stop string: nothing."""
        if self.stopped:
            return ""
        self.ids.extend(ids)
        if self.tokenizer is None:
            self.settled = len(self.ids)
            return ""
        whole = self._added(self.ids)
        known = whole if last else self._lasting(whole)
        found = min((place for stop in self.stops if (place := known.find(stop)) >= 0), default=None)
        begun = None if last else self._begun(known)
        if found is not None and (begun is None or found <= begun):
            self.stopped, known = True, known[:found]
            del self.ids[self._within(found) :]
            self.settled = len(self.ids)
        else:
            known = known[:begun]
            self.settled = len(self.ids) if known == whole else self._within(len(known))
        delta = known[len(self.text) :]
        self.text += delta
        return delta

    def _lasting(self, whole: str) -> str:
        # a run of byte tokens is decoded as one: its next byte may turn all of it into another text
        end = len(self.ids)
        while end and (self._is_byte(self.ids[end - 1]) or not self._decode(self.ids[end - 1 : end])):
            end -= 1
        if any(self._is_byte(token) for token in self.ids[end:]):
            whole = self._added(self.ids[:end])
        return whole.rstrip(BROKEN)

    def _begun(self, known: str) -> int | None:
        sizes = [size for stop in self.stops for size in range(1, len(stop)) if known.endswith(stop[:size])]
        return len(known) - max(sizes) if sizes else None

    def _within(self, length: int) -> int:
        count = len(self.ids)
        while count and len(self._added(self.ids[:count])) > length:
            count -= 1
        return count
