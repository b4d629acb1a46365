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
from hildanext.measure.generation import Completion, Generator, generator_for
from hildanext.progress import Console
from hildanext.registry import Plugin
from hildanext.report.intervals import Measure, mean, ratio

AT_ONCE = 16


@dataclass(frozen=True)
class EvalContext:
    """loaded: models.load.Loaded; generator: asked by tasks that need text; config, console: of the command."""

    loaded: Any
    config: Config
    console: Console
    generator: Generator

    @classmethod
    def of(cls, loaded: Any, config: Config, console: Console) -> EvalContext:
        """The context of a loaded model under a configuration."""
        generator = generator_for(config.eval.generator, loaded, config.decode)
        block = config.decode.block or loaded.meta.block or DEFAULT_BLOCK
        for caution in loaded.meta.cautions(block) if generator.kind == "diffusion" else ():
            console.warn(caution)
        return cls(loaded, config, console, generator)

    def complete(self, label: str, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request, with a progress bar."""
        found: list[Completion] = []
        with self.console.bar(label, len(requests)) as bar:
            for start in range(0, len(requests), AT_ONCE):
                part = requests[start : start + AT_ONCE]
                found += self.generator.complete(part)
                bar.advance(len(part))
        return found


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

    def run(self, context: EvalContext) -> Outcome:
        """Measure the model of the context."""
        raise ValueError(f"{type(self).__name__}: a task defines run")


def cost(completions: Sequence[Completion]) -> dict[str, Measure]:
    """Measures every generating task reports: tokens per forward, tokens per second, tokens and edits per text."""
    tokens = [float(done.tokens) for done in completions]
    return {
        "tokens_per_forward": ratio(tokens, [float(done.forwards) for done in completions], "tokens"),
        "tokens_per_second": ratio(tokens, [max(done.seconds, 1e-9) for done in completions], "tokens/s"),
        "tokens_per_text": mean(tokens, "tokens"),
        "edits_per_text": mean([float(done.edits) for done in completions], "edits"),
    }
