# Reward `sudoku`: the share of a 4x4 puzzle's empty cells that an answer fills rightly.
# Entry points: Sudoku.
# Given cells earn nothing, and a grid that changes one earns nothing at all.
"""Reward plugin sudoku."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from hildanext.core.reward import Attempt, Reward
from hildanext.errors import DataError

CELLS = 16
GRID = re.compile(rf"(?<!\d)[0-4](?:\s*[0-4]){{{CELLS - 1}}}(?!\d)")


class Sudoku(Reward):
    """Right empty cells / empty cells of the last sixteen digits in the answer. Source: the 4x4 task of d1
    arXiv:2504.12216; a changed given cell is worth 0 here."""

    puzzle: str = Field("Puzzle", description="field of the row with the puzzle: 16 digits, 0 is empty")
    solution: str = Field("Solution", description="field of the row with the solution: 16 digits")

    def ready(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Every row has a puzzle and a solution that fits it."""
        for row in rows:
            self._task(row)

    def score(self, attempt: Attempt) -> float:
        """Of one answer."""
        puzzle, solution = self._task(attempt.row)
        found = GRID.findall(attempt.reply)
        if not found:
            return 0.0
        said = "".join(found[-1].split())
        if any(cell not in ("0", own) for cell, own in zip(puzzle, said, strict=True)):
            return 0.0
        empty = [place for place, cell in enumerate(puzzle) if cell == "0"]
        return sum(said[place] == solution[place] for place in empty) / max(1, len(empty))

    def _task(self, row: Mapping[str, Any]) -> tuple[str, str]:
        puzzle, solution = (str(row.get(name, "")).zfill(CELLS) for name in (self.puzzle, self.solution))
        fits = all(cell in ("0", right) for cell, right in zip(puzzle, solution, strict=False))
        if (
            not re.fullmatch(rf"[0-4]{{{CELLS}}}", puzzle)
            or not re.fullmatch(rf"[1-4]{{{CELLS}}}", solution)
            or not fits
        ):
            raise DataError(
                f"reward sudoku: {self.puzzle}={puzzle[:20]!r} with {self.solution}={solution[:20]!r} is no 4x4 puzzle"
                " and its solution; name the fields with puzzle and solution"
            )
        return puzzle, solution
