# Masks in order of entropy while their entropies add up to no more than a bound.
# Entry points: EntropyBound.
# At least one is filled. SDAR's public code of this rule reads the top probability as if it were a distribution; this
# is the rule that code describes.
"""Policy `entropy_bound`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked


class EntropyBound(BlockPolicy):
    """The longest prefix, by entropy, of masked positions whose cumulative entropy is <= gamma nats, at least one.
    Source: SDAR arXiv:2510.06303, entropy-bounded remasking."""

    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    gamma: float = Field(0.35, ge=0.0, description="sum of the entropies filled in one forward, nats")

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The prefix of lowest entropies."""
        if stats.entropy is None:
            raise ValueError("policy entropy_bound: the statistics carry no entropy")
        hidden = masked(canvas)
        ordered = stats.entropy[hidden].double().sort().values
        count = int((ordered.cumsum(dim=0) <= self.gamma).sum())
        return fill(stats, canvas, best_first(-stats.entropy, hidden, max(least(canvas, 1), count)))
