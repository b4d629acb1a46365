# Text of committed tokens, piece by piece: no half characters, no text after a stop string.
# Entry points: TextStream.
# Text is decoded behind the last tokens of the prompt, because decoders treat a leading space by what precedes it.
"""Incremental detokenisation with stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CONTEXT_TOKENS = 8


@dataclass
class TextStream:
    """Turns token ids into text deltas. stopped: a stop string was met; ids: the tokens whose text was kept; settled:
    how many of them can no longer become part of a stop string."""

    tokenizer: Any
    prompt: Sequence[int]
    stops: Sequence[str] = ()
    hidden: frozenset[int] = frozenset()
    ids: list[int] = field(default_factory=list)
    text: str = ""
    stopped: bool = False
    settled: int = 0
    _context: list[int] = field(default_factory=list)
    _prefix: str = ""

    def __post_init__(self) -> None:
        context = list(self.prompt[-CONTEXT_TOKENS:])
        prefix = self._decode(context)
        self._context, self._prefix = ([], "") if prefix.endswith("\ufffd") else (context, prefix)

    def _decode(self, ids: Sequence[int]) -> str:
        if self.tokenizer is None:
            return ""
        shown = [token for token in ids if token not in self.hidden]
        return str(self.tokenizer.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _behind_prompt(self, ids: Sequence[int]) -> str:
        return self._decode([*self._context, *ids])[len(self._prefix) :]

    def piece(self, token: int) -> str:
        """The text of one token behind other text, so that a leading space is kept; special tokens by their names."""
        return self._behind_prompt([token]) or str(self.tokenizer.decode([token])) if self.tokenizer else ""

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The text that `ids` add for good; with `last` nothing is held back. After a stop string: nothing."""
        if self.stopped:
            return ""
        self.ids.extend(ids)
        whole = self._behind_prompt(self.ids)
        places = [place for stop in self.stops if (place := whole.find(stop)) >= 0]
        if places:
            whole = whole[: min(places)]
            del self.ids[self._within(len(whole)) :]
            self.stopped = True
        held = 0 if last or self.stopped else self._held(whole)
        whole = whole[: len(whole) - held]
        self.settled = self._within(len(whole)) if held else len(self.ids)
        delta = whole[len(self.text) :]
        self.text += delta
        return delta

    def _within(self, length: int) -> int:
        count = len(self.ids)
        while count and len(self._behind_prompt(self.ids[:count])) > length:
            count -= 1
        return count

    def _held(self, whole: str) -> int:
        broken = len(whole) - len(whole.rstrip("\ufffd"))
        partial = [size for stop in self.stops for size in range(1, len(stop)) if whole.endswith(stop[:size])]
        return max([broken, *partial])
