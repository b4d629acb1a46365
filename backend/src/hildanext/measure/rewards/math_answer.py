# Reward `math_answer`: whether an answer's formula equals the reference, by the package math-verify.
# Entry points: MathAnswer.
# Each pair is compared in a child process that is ended at its time limit: some formulas make sympy think for ever.
"""Reward plugin math_answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from pydantic import Field

from hildanext.core.reward import Attempt, Reward
from hildanext.errors import DataError, HildaError

COMPARE = """
import json, sys
from math_verify import parse, verify
gold, said = json.load(sys.stdin)
gold = gold if "$" in gold or "boxed" in gold else "$" + gold + "$"
sys.stdout.write(json.dumps(bool(verify(parse(gold, parsing_timeout=None), parse(said, parsing_timeout=None),
    timeout_seconds=None))))
"""


class MathAnswer(Reward):
    """1 where math-verify finds the answer equal to the reference within the time limit, else 0. Source: docs/rl.md."""

    answer: str = Field("answer", description="field of the row with the reference, LaTeX or plain")
    seconds: float = Field(20.0, gt=0, description="of one comparison, with the start of its process")
    at_once: int = Field(2, ge=1, description="comparisons at a time, a count")

    def ready(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """math-verify is installed and every row has a reference."""
        if find_spec("math_verify") is None:
            raise HildaError("reward math_answer: math-verify is not installed; pip install math-verify")
        missing = next((row for row in rows if not str(row.get(self.answer) or "")), None)
        if missing is not None:
            raise DataError(f"reward math_answer: a row lacks {self.answer}; it has {', '.join(sorted(missing))}")

    def score(self, attempt: Attempt) -> float:
        """Of one answer."""
        asked = json.dumps([str(attempt.row[self.answer]), attempt.reply])
        command = [sys.executable, "-I", "-c", COMPARE]
        try:
            done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=self.seconds)
        except subprocess.TimeoutExpired:
            return 0.0
        return float(done.returncode == 0 and done.stdout == "true")

    def scores(self, attempts: Sequence[Attempt]) -> list[float]:
        """Some at a time."""
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(self.score, attempts))
