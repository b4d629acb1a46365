# Reward `countdown`: whether an answer's expression uses the given numbers, each once, and makes the target.
# Entry points: Countdown, value_of.
# The expression is parsed and its tree is walked with exact fractions; nothing is ever evaluated as code.
"""Reward plugin countdown."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from pydantic import Field

from hildanext.core.reward import Attempt, Reward
from hildanext.errors import DataError

LONGEST = 200
EXPRESSION = re.compile(r"[\d+\-*/()\s]+")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.S)


class Countdown(Reward):
    """1 where the target is made of all the numbers, `formed` where they are used once each but make something else,
    else 0. Source: the countdown task of d1 arXiv:2504.12216."""

    numbers: str = Field("input", description="field of the row with the numbers: a list, or text with commas")
    target: str = Field("output", description="field of the row with the target")
    formed: float = Field(0.1, ge=0, lt=1, description="worth of an expression of the right numbers, a wrong value")

    def ready(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Every row has numbers and a target."""
        for row in rows:
            self._task(row)

    def score(self, attempt: Attempt) -> float:
        """Of one answer: the expression between <answer> tags, else the last one in it, left of any equals sign."""
        numbers, target = self._task(attempt.row)
        value, used = value_of(_expression(attempt.reply))
        if value is None or Counter(used) != Counter(numbers):
            return 0.0
        return 1.0 if value == target else self.formed

    def _task(self, row: Mapping[str, Any]) -> tuple[list[int], int]:
        given = row.get(self.numbers)
        try:
            parts = given.split(",") if isinstance(given, str) else list(given or ())
            return [int(part) for part in parts], int(str(row.get(self.target)))
        except (ValueError, TypeError):
            raise DataError(
                f"reward countdown: {self.numbers}={given!r} and {self.target}={row.get(self.target)!r} are no numbers"
                " and target; name the fields with numbers and target"
            ) from None


def _expression(reply: str) -> str:
    marked = ANSWER.findall(reply)
    if marked:
        return str(marked[-1]).split("=", 1)[0].strip()
    left = [part.split("=", 1)[0] for part in reply.splitlines() if part.strip()]
    found = [one.strip() for line in left for one in EXPRESSION.findall(line) if re.search(r"\d\s*[-+*/]", one)]
    return found[-1] if found else ""


def value_of(expression: str) -> tuple[Fraction | None, list[int]]:
    """(value, numbers used) of sums, differences, products and quotients of whole numbers; (None, []) for anything
    else, for a division by zero and for over 200 characters. Source: docs/rl.md."""
    used: list[int] = []
    try:
        if len(expression) > LONGEST:
            return None, []
        return _value(ast.parse(expression, mode="eval").body, used), used
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None, []


def _value(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise ValueError("no arithmetic")
    left, right = _value(node.left, used), _value(node.right, used)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        return left / right
    raise ValueError("no arithmetic")
