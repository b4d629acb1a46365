# A block's first look is exact and shows which keys the block needs; its later looks read only those.
# Entry points: Mage.
# Nothing is dropped: the next block looks at everything again, and blocks are committed by a forward that sees all.
"""Compressor `mage`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, zeros_like
from torch import bool as bool_

from hildanext.decoding.compression import KVCompressor


class Mage(KVCompressor):
    """Per layer and key head the `budget` columns to which the block's first, all but masked look paid most attention.
    Source: MAGE arXiv:2602.14209; that a block is committed by an exact forward is ours."""

    looks: ClassVar[bool] = True
    keeps_looks: ClassVar[bool] = False
    one_block: ClassVar[bool] = True
    budget: int = Field(512, ge=1, description="keys of the prefix that later looks of a block see per head, a count")

    def seen(self, mass: Tensor) -> Tensor | None:
        """The heaviest."""
        best = mass.topk(min(self.budget, mass.shape[1]), dim=1).indices
        return zeros_like(mass, dtype=bool_).scatter_(1, best, True)

    def wants(self, columns: int) -> bool:
        """Where there are more than the budget."""
        return columns > self.budget
