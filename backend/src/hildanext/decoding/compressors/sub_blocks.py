# A block in parts: forwards compute one part only, and take the keys of the rest of the block as they were.
# Entry points: SubBlocks.
# Keys of the parts behind are those of masks that saw an earlier state of the block: the hierarchical cache.
"""Compressor `sub_blocks`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from hildanext.decoding.compression import KVCompressor


class SubBlocks(KVCompressor):
    """Parts of `size` positions, filled from left to right; entering one computes the whole block. Source: Fast-dLLM v2
    arXiv:2509.26328, hierarchical caching; a finished block is committed by an exact forward, as there."""

    keeps_looks: ClassVar[bool] = False
    one_block: ClassVar[bool] = True
    size: int = Field(8, ge=1, description="positions of a part, a divisor of the block size")
    every: int = Field(0, ge=0, description="looks at a part after which the whole block is computed again; 0: never")

    @property
    def inner(self) -> int:
        """The size."""
        return self.size

    @property
    def refresh(self) -> int:
        """`every`."""
        return self.every
