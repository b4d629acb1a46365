# Reward `unit_tests`: the share of a row's tests that an answer's code passes, each in a sandbox of its own.
# Entry points: UnitTests.
# A test runs in another process than the code (docs/sandbox.md): ending early or patching asserts passes nothing.
"""Reward plugin unit_tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import Field

from hildanext.core.reward import Attempt, Reward
from hildanext.errors import DataError
from hildanext.measure.extraction import code_block
from hildanext.measure.judging import WORKERS
from hildanext.measure.sandbox import Limits, run_program


class UnitTests(Reward):
    """Passed tests / tests; with all_or_nothing 1 only for all. Source: docs/sandbox.md."""

    tests: str = Field("test_list", description="field of the row with its tests: a list of statements, or one text")
    setup: str = Field("test_setup_code", description="field of the row with lines before each test; may be missing")
    all_or_nothing: bool = Field(False, description="no share for some of the tests")
    cpu_seconds: int = Field(5, ge=1, description="processor time of one test, seconds")

    def ready(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Every row has tests."""
        for row in rows:
            self._tests(row)

    def score(self, attempt: Attempt) -> float:
        """Of one answer."""
        return self.scores([attempt])[0]

    def scores(self, attempts: Sequence[Attempt]) -> list[float]:
        """All tests of all answers, as many at a time as there are processors."""
        limits = Limits(cpu_seconds=self.cpu_seconds, wall_seconds=2.0 * self.cpu_seconds)
        jobs = [(place, test) for place, one in enumerate(attempts) for test in self._tests(one.row)]
        sources = [code_block(one.reply) for one in attempts]
        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(lambda job: run_program(sources[job[0]], limits, tests=job[1]).passed, jobs))
        passed = [
            [ok for (place, _), ok in zip(jobs, found, strict=True) if place == one] for one in range(len(attempts))
        ]
        shares = [sum(own) / len(own) for own in passed]
        return [float(share == 1) for share in shares] if self.all_or_nothing else shares

    def _tests(self, row: Mapping[str, Any]) -> list[str]:
        given, before = row.get(self.tests), str(row.get(self.setup) or "")
        found = [given] if isinstance(given, str) else list(given or ())
        if not found or not all(isinstance(test, str) for test in found):
            raise DataError(f"reward unit_tests: a row has no tests in {self.tests}; it has {', '.join(sorted(row))}")
        return [f"{before}\n{test}" for test in found]
