# A canvas whose blocks are opened in parts: what is decoded is a part, what is committed is a block.
# Entry points: PartedCanvas.
# Entering a part computes its whole block, so that the rest of it has keys; later looks compute the part alone.
"""Blocks decoded in parts."""

from __future__ import annotations

from dataclasses import dataclass

from hildanext.decoding.blocks import Span
from hildanext.decoding.state import RequestCanvas, Window


@dataclass
class PartedCanvas(RequestCanvas):
    """inner: positions of a part; refresh: looks at a part after which its block is computed again, 0: never.
    Source: Fast-dLLM v2 arXiv:2509.26328, sub-blocks."""

    inner: int = 1
    refresh: int = 0

    def span(self, position: int) -> Span:
        """The part that holds `position`."""
        start, whole = position - position % self.inner, super().span(position)
        return Span(start, min(start + self.inner, whole.stop))

    def window(self, budget: int, fuse: bool) -> Window:
        """Whole final blocks to commit; else the open part's block when it is entered or refreshed; else the part."""
        block = self.blocks.block
        done = self.final if self.finished else self.final // block * block
        if done > self.committed:
            return Window(self.committed, min(done, self.committed + max(block, budget // block * block)), ())
        own = self.opened[0]
        if own.led == 0 or self.refresh and own.led % self.refresh == 0:
            return Window(self.committed, self.blocks.span(own.span.start).stop, self.opened)
        return Window(own.span.start, own.span.stop, self.opened)
