# Which committed keys the blocks of a request see: the base of the plugins in compressors/, and what they are told.
# Entry points: KVCompressor, Known (a layer's committed keys).
# A rule is a pure function of one layer; kept_keys.py stores what it leaves, the engine knows only that there is one.
# Letters: H key heads, n committed columns of a layer, D head width.
"""Selection and compression of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from hildanext.registry import Plugin


@dataclass(frozen=True)
class Known:
    """The committed keys of a layer. key, value [H, n, D], positions are in the keys; place [H, n] int64: position of
    each, -1 where a head has no more; length: committed tokens of the text, a count; score [H, n] float32: trained
    scores, where the rule wants them."""

    key: Tensor
    value: Tensor
    place: Tensor
    length: int
    score: Tensor | None = None

    def recent(self, count: int) -> Tensor:
        """[H, n] bool: the last `count` positions of the text."""
        return self.place >= self.length - count


class KVCompressor(Plugin):
    """A rule about keys. `kept` is asked once the prompt is committed and after every later commit, and drops for good;
    `seen` is asked at the first look of a block and holds for its later looks. Class facts: looks: `seen` is asked;
    scored: `kept` reads trained scores; keeps_looks: a look that found all final may be committed (else a block is
    committed by a forward of its own, which sees all that is kept); one_block: not for windows of several blocks."""

    looks: ClassVar[bool] = False
    scored: ClassVar[bool] = False
    keeps_looks: ClassVar[bool] = True
    one_block: ClassVar[bool] = False
    mode: Literal["gather", "mask"] = Field(
        "gather", description="what is not seen is left out of memory or reading (gather), or hidden by a mask (mask)"
    )

    @property
    def inner(self) -> int:
        """Positions of the parts a block is decoded in, one after the other; 0: whole blocks."""
        return 0

    @property
    def refresh(self) -> int:
        """Looks at a part after which the whole block is computed again; 0: only when a part is entered."""
        return 0

    def kept(self, known: Known) -> Tensor | None:
        """[H, n] bool: the columns that stay; None: all."""
        return None

    def seen(self, mass: Tensor) -> Tensor | None:
        """[H, n] bool: the columns that later looks of the block see; mass [H, n] float32: attention that the block's
        first look paid to each, summed over its queries and the heads that share the key. None: all."""
        return None

    def wants(self, columns: int) -> bool:
        """Whether `seen` would leave out any of so many columns; else no mass is computed."""
        return self.looks
