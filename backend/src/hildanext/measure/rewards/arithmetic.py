# Reward `arithmetic`: whether the last number of an answer is the row's.
# Entry points: Arithmetic.
# `graded` also pays for a whole number that is near, which an untrained model needs to begin with.
"""Reward plugin arithmetic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from hildanext.core.reward import Attempt, Reward
from hildanext.errors import DataError
from hildanext.world.arithmetic import answered

NUMBER = re.compile(r"\d(?:\s*\d)*")


class Arithmetic(Reward):
    """1 where the last number is the answer (row: check.answer, or answer); else graded times the share of leading
    digits that are right. Source: docs/rl.md."""

    graded: float = Field(0.0, ge=0, lt=1, description="most that a wrong number with right first digits is worth")

    def ready(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Every row has an answer."""
        for row in rows:
            _wanted(row)

    def score(self, attempt: Attempt) -> float:
        """Of one answer."""
        wanted = _wanted(attempt.row)
        if answered({"answer": wanted}, attempt.reply):
            return 1.0
        found = NUMBER.findall(attempt.reply)
        said, right = "".join(found[-1].split()) if found else "", str(wanted)
        same = 0
        while same < min(len(said), len(right)) and said[same] == right[same]:
            same += 1
        return self.graded * same / max(len(said), len(right), 1)


def _wanted(row: Mapping[str, Any]) -> int:
    how = row.get("check")
    value = how.get("answer") if isinstance(how, Mapping) else row.get("answer")
    try:
        return int(str(value))
    except ValueError:
        raise DataError(
            f"reward arithmetic: a row has no whole number in check.answer or answer, but {value!r}; give rows of"
            " world:arithmetic, or use the reward gsm8k"
        ) from None
