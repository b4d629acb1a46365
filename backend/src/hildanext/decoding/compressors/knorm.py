# Of the older keys those with the smallest norms: they are the ones that queries point at.
# Entry points: Knorm.
# No training and no attention is needed: a key's norm is known when it is committed, and rotation does not change it.
"""Compressor `knorm`."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, arange, zeros_like

from hildanext.decoding.compression import Known, KVCompressor


class Knorm(KVCompressor):
    """Per head the `budget` keys of smallest L2 norm, and the `recent` last. Source: L2 norm-based KV cache compression
    arXiv:2406.11430; the recent window is ours."""

    budget: int = Field(1024, ge=0, description="older keys that are kept per head, a count")
    recent: int = Field(128, ge=0, description="last positions that are kept, a count")

    def kept(self, known: Known) -> Tensor | None:
        """The short ones and the last."""
        recent = known.recent(self.recent)
        older = (known.place >= 0) & ~recent
        if int(older.sum(dim=1).max()) <= self.budget:
            return None
        order = known.key.float().norm(dim=2).masked_fill(~older, float("inf")).argsort(dim=1, stable=True)
        ranks = zeros_like(order).scatter_(1, order, arange(order.shape[1], device=order.device).expand_as(order))
        return recent | older & (ranks < self.budget)
