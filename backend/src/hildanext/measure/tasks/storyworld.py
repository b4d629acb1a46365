# Task `storyworld`: are the model's stories stories of this world, what contradicts what, and are its answers right.
# Entry points: Storyworld.
# A story is asked for by its first sentence; the records come from a seed no training run uses.
"""Task plugin storyworld."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from hildanext.config.base import SEEDS
from hildanext.config.decode import Temperature
from hildanext.decoding.request import Request
from hildanext.measure.generation import Completion
from hildanext.measure.task import FAILED, EvalContext, Outcome, Task, cost
from hildanext.report.intervals import Measure, mean, share


class Storyworld(Task):
    """Share of generated stories the checker accepts, contradictions per story and their kinds, answers right."""

    version: ClassVar[int] = 2
    stories: int = Field(100, ge=0, description="stories to generate")
    answers: int = Field(50, ge=0, description="questions per register")
    registers: tuple[Literal["chat", "arithmetic", "coding"], ...] = Field(
        ("chat", "arithmetic", "coding"), description="registers whose answers are checked"
    )
    seed: int = Field(7_000_001, ge=0, lt=SEEDS, description="seed of prompts and questions")
    temperature: Temperature | None = Field(None, description="temperature of stories; null: that of decode")
    max_new_tokens: int = Field(256, ge=1, description="tokens per text")

    def run(self, context: EvalContext) -> Outcome:
        """Generate stories and answers and judge them."""
        measures: dict[str, Measure] = {}
        counts: Counter[str] = Counter()
        samples: list[dict[str, Any]] = []
        if self.stories:
            measures |= self._told(context, counts, samples)
        if self.answers:
            for register in self.registers:
                measures[f"{register}_right"] = self._answered(context, register, samples)
        return Outcome(measures, counts, samples)

    def _told(self, context: EvalContext, counts: Counter[str], samples: list[dict[str, Any]]) -> dict[str, Measure]:
        starts = self.openings()
        done = context.complete("storyworld: stories", [self.request(start, i) for i, start in enumerate(starts)])
        return judged(starts, done, counts, samples, context.config.eval.samples) | cost(done)

    def openings(self) -> list[str]:
        """The first sentences of the stories."""
        from hildanext.world import story

        return [story(f"{self.seed}:{index}").sentences[0] for index in range(self.stories)]

    def request(self, start: str, sample: int) -> Request:
        """The request of one story."""
        return Request(prompt=start, max_new_tokens=self.max_new_tokens, temperature=self.temperature, sample=sample)

    def _answered(self, context: EvalContext, register: str, samples: list[dict[str, Any]]) -> Measure:
        from hildanext.world import check_answer, corpus

        records = list(corpus(register, self.seed, self.answers))
        asks = [
            Request(messages=tuple(record["messages"][:-1]), max_new_tokens=self.max_new_tokens) for record in records
        ]
        done = context.complete(f"storyworld: {register}", asks)
        right = [
            one.finish != FAILED and check_answer(record, one.text.strip())
            for record, one in zip(records, done, strict=True)
        ]
        for record, one, fits in list(zip(records, done, right, strict=True))[: context.config.eval.samples]:
            asked = record["messages"][-2]["content"]
            samples.append({"register": register, "asked": asked, "reply": one.text, "right": fits})
        return share(sum(right), len(right))


def judged(
    starts: Sequence[str], done: Sequence[Completion], counts: Counter[str], samples: list[dict[str, Any]], shown: int
) -> dict[str, Measure]:
    """validity and contradictions of stories; kinds of problems are added to counts, texts to samples. A failed item is
    not valid."""
    from hildanext.world import check

    told = [(start, one) for start, one in zip(starts, done, strict=True) if one.finish != FAILED]
    verdicts = [check(f"{start}{_gap(one.text)}{one.text}") for start, one in told]
    counts.update(f"problem: {problem.kind}" for verdict in verdicts for problem in verdict.problems)
    for (start, one), verdict in list(zip(told, verdicts, strict=True))[:shown]:
        first = verdict.problems[0].contradicts if verdict.problems else ""
        samples.append({"register": "stories", "asked": start, "reply": one.text, "right": verdict.valid, "why": first})
    return {
        "valid": share(sum(verdict.valid for verdict in verdicts), len(done)),
        "problems_per_story": mean([float(len(verdict.problems)) for verdict in verdicts], "problems"),
    }


def _gap(text: str) -> str:
    return "" if text[:1].isspace() else " "
