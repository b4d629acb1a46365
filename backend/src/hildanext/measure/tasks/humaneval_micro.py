# Task `humaneval_micro`: one-line functions of the story world, written by the model and run against their tests.
# Entry points: HumanevalMicro.
# Needs no files; records are drawn from a seed no training run uses.
"""Task plugin humaneval_micro."""

from __future__ import annotations

from itertools import islice
from typing import ClassVar

from pydantic import Field

from hildanext.config.base import SEEDS
from hildanext.decoding.request import Request
from hildanext.measure.extraction import completed_function
from hildanext.measure.judging import Program, judge
from hildanext.measure.sandbox import TESTS, Limits
from hildanext.measure.task import EvalContext, Outcome, Task


class HumanevalMicro(Task):
    """pass@1 on micro coding tasks asked as chat turns, in HumanEval's schema."""

    version: ClassVar[int] = 2
    limit: int = Field(100, ge=1, description="tasks")
    seed: int = Field(7_000_001, ge=0, lt=SEEDS, description="seed of the records")
    max_new_tokens: int = Field(32, ge=1, description="tokens per reply")
    canonical: bool = Field(False, description="run the reference solutions instead of the model's, to check the tests")

    def run(self, context: EvalContext) -> Outcome:
        """Generate, complete the function, run its tests."""
        from hildanext.world import corpus, humaneval_row

        records = list(islice(corpus("coding", self.seed, self.limit), self.limit))
        rows = [humaneval_row(record) for record in records]
        asks = [
            Request(messages=tuple(record["messages"][:-1]), max_new_tokens=self.max_new_tokens) for record in records
        ]
        done = [] if self.canonical else context.complete("humaneval_micro", asks)
        replies = [row["canonical_solution"] for row in rows] if self.canonical else [one.text for one in done]
        programs = [
            Program(row["task_id"], reply, self.program(row, reply)) for row, reply in zip(rows, replies, strict=True)
        ]
        return judge(context, "humaneval_micro", programs, done, Limits(cpu_seconds=2, wall_seconds=20.0))

    def program(self, row: dict[str, str], reply: str) -> str:
        """The prompt continued by the reply on one line, then the tests, called on the entry point."""
        body = reply if reply.startswith(("\n", " ")) or reply.lstrip().startswith(("def ", "#")) else f" {reply}"
        whole = completed_function(row["prompt"], body, row["entry_point"])
        return f"{whole}\n{TESTS}\n{row['test']}\n\ncheck({row['entry_point']})\n"
