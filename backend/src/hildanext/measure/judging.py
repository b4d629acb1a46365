# Whether generated programs pass their tests: each in its own sandbox, as many at a time as there are processors.
# Entry points: Program, judge.
# A canonical solution that fails here would make every score wrong, so tasks can be asked to run those instead.
"""Judging generated code."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hildanext.measure.generation import Completion
from hildanext.measure.sandbox import Limits, run_program, walls, warning
from hildanext.measure.task import EvalContext, Outcome, cost
from hildanext.report.intervals import share

WORKERS = max(2, min(16, os.cpu_count() or 2))


@dataclass(frozen=True)
class Program:
    """A task's id, what the model wrote, and the whole program with its tests behind a line sandbox.TESTS."""

    name: str
    reply: str
    source: str


def judge(
    context: EvalContext, label: str, programs: Sequence[Program], done: Sequence[Completion], limits: Limits
) -> Outcome:
    """pass_at_1 with its interval, the reasons of failures as counts, and the first samples. `done` empty: no cost."""
    if said := warning(walls()):
        context.console.warn(said)
    with ThreadPoolExecutor(WORKERS) as pool, context.console.bar(f"{label}: tests", len(programs)) as bar:
        found = []
        for outcome in pool.map(run_program, [program.source for program in programs], [limits] * len(programs)):
            found.append(outcome)
            bar.advance()
    reasons = Counter(outcome.reason for outcome in found)
    shown: list[dict[str, Any]] = [
        {"id": program.name, "reply": program.reply, "passed": outcome.passed, "why": outcome.output[-300:]}
        for program, outcome in zip(programs, found, strict=True)
    ]
    passed = {"pass_at_1": share(reasons["passed"], len(found))}
    counts = dict(reasons) | {"isolated": sum(outcome.isolated for outcome in found)}
    return Outcome(passed | (cost(done) if done else {}), counts, shown[: context.config.eval.samples])
