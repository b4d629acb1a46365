# What a task gets and what it gives: the context of an evaluation and the outcome of one task.
# Entry points: Task (base of measure/tasks plugins), EvalContext, Outcome.
# A task's version changes whenever its numbers would.
"""Protocol of evaluation tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from hildanext.config import Config
from hildanext.decoding.engine import DEFAULT_BLOCK
from hildanext.decoding.request import Request
from hildanext.errors import DataError, DecodeError
from hildanext.measure.generation import Completion, Generator, generator_for
from hildanext.progress import Console
from hildanext.registry import Plugin
from hildanext.report.intervals import Measure, mean, ratio

ROUNDS = 4
FAILED = "failed"


@dataclass(frozen=True)
class EvalContext:
    """loaded: models.load.Loaded; generator: asked by tasks that need text; config, console: of the command; failed:
    what was wrong with each item that got no text, appended by complete."""

    loaded: Any
    config: Config
    console: Console
    generator: Generator
    failed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, loaded: Any, config: Config, console: Console) -> EvalContext:
        """The context of a loaded model under a configuration."""
        generator = generator_for(config.eval.generator, loaded, config.decode, config.latent)
        block = config.decode.block or loaded.meta.block or DEFAULT_BLOCK
        for caution in loaded.meta.cautions(block) if generator.kind == "diffusion" else ():
            console.warn(caution)
        return cls(loaded, config, console, generator)

    def complete(self, label: str, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request, with a progress bar. A request that cannot be served (too long, a chat its
        template refuses) is `failed` in its place, warned of and counted; DecodeError or DataError where all are."""
        found: list[Completion] = []
        at_once = ROUNDS * self.config.decode.requests
        with self.console.bar(label, len(requests)) as bar:
            for start in range(0, len(requests), at_once):
                part = requests[start : start + at_once]
                found += self._each(part)
                bar.advance(len(part))
        wrong = {index: one.error for index, one in enumerate(found) if one.finish == FAILED}
        if wrong and len(wrong) == len(found):
            self.generator.complete(requests[:1])
        for index, error in wrong.items():
            self.console.warn(f"{label}: item {index + 1} of {len(found)} failed: {error}")
        self.failed.extend(wrong.values())
        return found

    def _each(self, requests: Sequence[Request]) -> list[Completion]:
        try:
            return self.generator.complete(requests)
        except (DecodeError, DataError) as error:
            if len(requests) == 1:
                return [Completion("", (), 0, 0, 0.0, FAILED, str(error))]
        middle = len(requests) // 2
        return self._each(requests[:middle]) + self._each(requests[middle:])


@dataclass(frozen=True)
class Outcome:
    """What a task found. measures: values with intervals by name; counts: plain counts; samples: some items as shown
    to a reader; series: {name: [{x, y, ...}]} for plots."""

    measures: Mapping[str, Measure]
    counts: Mapping[str, int] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    series: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return {
            "measures": {name: measure.as_dict() for name, measure in self.measures.items()},
            "counts": dict(self.counts),
            "samples": [dict(sample) for sample in self.samples],
            "series": {name: [dict(point) for point in points] for name, points in self.series.items()},
        }


class Task(Plugin):
    """Base of every task: the fields are its settings. limit: items at most; 0 takes all."""

    version: ClassVar[int] = 1
    limit: int = Field(0, ge=0, description="items at most; 0: all there are")

    def ready(self) -> None:
        """Open what the task reads; what run would say of it is said here, before a model is loaded or a task runs."""

    def run(self, context: EvalContext) -> Outcome:
        """Measure the model of the context."""
        raise ValueError(f"{type(self).__name__}: a task defines run")


def cost(completions: Sequence[Completion]) -> dict[str, Measure]:
    """Measures every generating task reports: tokens per forward, the same with every commit a forward of its own,
    positions per forward (of generated blocks), tokens per second (of all texts over the seconds they took together),
    tokens and edits per text. Failed items are left out."""
    written = [done for done in completions if done.finish != FAILED]
    tokens = [float(done.tokens) for done in written]
    forwards, unfused = (
        [float(done.forwards + apart * done.fused) for done in written] for apart in (False, True)
    )  # fmt: skip
    return {
        "tokens_per_forward": ratio(tokens, forwards, "tokens"),
        "tokens_per_forward_unfused": ratio(tokens, unfused, "tokens"),
        "positions_per_forward": ratio([float(done.positions) for done in written], forwards, "positions"),
        "tokens_per_second": ratio(tokens, [max(done.seconds, 1e-9) for done in written], "tokens/s"),
        "tokens_per_text": mean(tokens, "tokens"),
        "edits_per_text": mean([float(done.edits) for done in written], "edits"),
    }
