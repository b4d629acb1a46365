# Reward `gsm8k`: whether the number an answer gives is the reference's, found as the task gsm8k finds it.
# Entry points: Gsm8kAnswer.
# One extraction for training and for measuring, so that nothing is rewarded that the task does not count.
"""Reward plugin gsm8k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from hildanext.core.reward import Attempt, Reward
from hildanext.errors import DataError
from hildanext.measure.extraction import gsm8k_answer, gsm8k_gold, same_number


class Gsm8kAnswer(Reward):
    """1 for the reference's number, else 0. Source: GSM8K arXiv:2110.14168."""

    answer: str = Field("answer", description="field of the row with the reference; its number stands after '####'")
    rule: Literal["flexible", "strict"] = Field("flexible", description="strict: only a number after '####' counts")

    def ready(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Every row has a number."""
        for row in rows:
            gold = gsm8k_gold(str(row.get(self.answer, "")))
            if not same_number(gold, gold):
                raise DataError(
                    f"reward gsm8k: {self.answer}={str(row.get(self.answer))[:60]!r} ends in no number; name the field"
                    " with answer"
                )

    def score(self, attempt: Attempt) -> float:
        """Of one answer."""
        gold = gsm8k_gold(str(attempt.row[self.answer]))
        return float(same_number(gsm8k_answer(attempt.reply, self.rule), gold))
