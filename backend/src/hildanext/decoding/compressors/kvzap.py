# Keys whose trained score is low are dropped once they are no longer recent: each head keeps as many as it needs.
# Entry points: Kvzap.
# A score estimates the logarithm of the largest share of attention that any later query pays the key, so the threshold
# has a meaning: -6.9 drops what nobody is expected to give a thousandth. `hildanext key-scores` trains the scores.
"""Compressor `kvzap`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from hildanext.decoding.compression import Known, KVCompressor


class Kvzap(KVCompressor):
    """Keys with score >= threshold, the `sinks` first and the `recent` last. Source: KVzap arXiv:2601.07891: a scorer
    per layer on the hidden state that enters it; ours is linear, its target the largest later attention."""

    scored: ClassVar[bool] = True
    threshold: float = Field(
        -6.0, le=0.0, allow_inf_nan=True, description="score below which a key is dropped, nats; from Python also -inf"
    )
    sinks: int = Field(4, ge=0, description="first positions that are kept, a count")
    recent: int = Field(128, ge=0, description="last positions that are kept whatever they score, a count")

    def kept(self, known: Known) -> Tensor | None:
        """The high ones, the first and the last."""
        if known.score is None:
            raise ValueError("compressor kvzap: it was given no scores")
        return (known.score >= self.threshold) | (known.place < self.sinks) | known.recent(self.recent)
