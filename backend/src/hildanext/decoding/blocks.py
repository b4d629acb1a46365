# Where the blocks of one request lie: pure integers, no torch.
# Entry points: Blocks (of a prompt and a length), Span (one block).
# Blocks are absolute: block k covers positions [k * block, (k + 1) * block), whatever the prompt's length.
"""Blocks, editable range and positions of a request."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hildanext.errors import WindowError


@dataclass(frozen=True)
class Span:
    """Positions [start, stop) of one block."""

    start: int
    stop: int


@dataclass(frozen=True)
class Blocks:
    """A sequence of `given` leading tokens (prompt), `new` tokens and `after` given ones behind them (a suffix), in
    blocks of `block`. The canvas is rounded up to whole blocks but never beyond `window` positions (0: no bound);
    tokens after `limit` are never shown."""

    given: int
    new: int
    block: int
    window: int = 0
    whole: bool = True
    after: int = 0

    def __post_init__(self) -> None:
        if self.block < 1 or self.given < 0 or self.new < 0:
            raise ValueError(f"layout: given {self.given}, new {self.new}, block {self.block} must be >= 0, >= 0, >= 1")
        if self.window and self.limit + self.after > self.window:
            raise WindowError(self._too_long())

    def _too_long(self) -> str:
        most = f"the model's maximum context length (its window) is {self.window} tokens"
        if self.after:
            over = self.limit + self.after - self.window
            return f"prompt: {most}, {self.given} tokens + {self.new} new + {self.after} of suffix; shorten by {over}"
        if not self.whole:
            return f"prompt: {most}, text and gaps take {self.limit}; shorten them by {self.limit - self.window}"
        if self.given >= self.window:
            over = self.given - self.window + 1
            return f"prompt: {most}, the prompt has {self.given} and max_new_tokens comes on top; shorten it by {over}"
        return (
            f"max_new_tokens: {most}, {self.given} prompt tokens + {self.new} new ones are {self.limit}; "
            f"ask for at most {self.window - self.given}, or shorten the prompt"
        )

    @property
    def limit(self) -> int:
        """Positions that may be shown: given + new."""
        return self.given + self.new

    @cached_property
    def length(self) -> int:
        """Positions of the canvas: all of them rounded up to whole blocks, within the window."""
        length = self.limit + self.after
        rounded = -(-length // self.block) * self.block if self.whole else length
        return min(rounded, self.window) if self.window else rounded

    @property
    def first_open(self) -> int:
        """Start of the first block that holds a position to fill; everything before it is prefilled."""
        return min(self.given // self.block * self.block, self.length)

    def span(self, position: int) -> Span:
        """The block that holds `position`, cut at the end of the canvas."""
        start = position // self.block * self.block
        return Span(start, min(start + self.block, self.length))

    def spans(self) -> list[Span]:
        """Every block of the canvas in order."""
        return [self.span(start) for start in range(0, self.length, self.block)]
