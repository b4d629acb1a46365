# The first few positions and the last many: what lies between is dropped when it is committed.
# Entry points: Window.
# The first positions are kept because attention that finds nothing goes there.
"""Compressor `window`."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from hildanext.decoding.compression import Known, KVCompressor


class Window(KVCompressor):
    """Keys at positions below `sinks` and the `recent` last. Source: StreamingLLM arXiv:2309.17453 sec. 3.2; positions
    stay those of the text (there: those in the cache), as blocks are trained with them."""

    sinks: int = Field(4, ge=0, description="first positions that are kept, a count")
    recent: int = Field(1024, ge=0, description="last positions that are kept, a count")

    def kept(self, known: Known) -> Tensor | None:
        """The first and the last."""
        if known.length <= self.sinks + self.recent:
            return None
        return (known.place < self.sinks) | known.recent(self.recent)
