# Reward `format`: whether an answer has a form, given as a regular expression.
# Entry points: Format.
# A reward of form alone is learned first and by everybody: give it a small weight.
"""Reward plugin format."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from hildanext.core.reward import Attempt, Reward


class Format(Reward):
    """1 where the pattern is found, else 0; a dot is any character, line breaks too. Source: docs/rl.md."""

    pattern: str = Field(r"\S", max_length=500, description="regular expression that is searched for")
    whole: bool = Field(False, description="the whole answer must be it, white space around it aside")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> Any:
        try:
            re.compile(value, re.S)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return value

    def score(self, attempt: Attempt) -> float:
        """Of one answer."""
        text = attempt.reply.strip()
        return float(bool((re.fullmatch if self.whole else re.search)(self.pattern, text, re.S)))
