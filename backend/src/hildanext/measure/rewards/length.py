# Reward `length`: a penalty on long answers, and on those that did not end by themselves.
# Entry points: Length.
# 0 is the best it gives: it takes away, so that it cannot be earned instead of an answer.
"""Reward plugin length."""

from __future__ import annotations

from pydantic import Field, model_validator

from hildanext.core.reward import Attempt, Reward


class Length(Reward):
    """0 up to `free` tokens, falling to -1 at `most`; -`endless` more where the answer was cut off. Source: docs/rl.md,
    overlong penalty."""

    free: int = Field(64, ge=0, description="tokens that cost nothing")
    most: int = Field(128, ge=1, description="tokens from which on an answer costs 1")
    endless: float = Field(0.0, ge=0, description="cost of an answer that did not end by itself")

    @model_validator(mode="after")
    def _ordered(self) -> Length:
        if self.most <= self.free:
            raise ValueError(f"most {self.most} should be above free {self.free}")
        return self

    def score(self, attempt: Attempt) -> float:
        """Of one answer."""
        over = (attempt.tokens - self.free) / (self.most - self.free)
        return -min(1.0, max(0.0, over)) - (0.0 if attempt.stopped else self.endless)
