# Task `steps`: quality against cost, by running another task at several thresholds.
# Entry points: Steps.
# tau_mask 1 fills one token per forward: the slowest, most careful setting and the frontier's anchor.
"""Task plugin steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from hildanext.config.eval import TaskSection
from hildanext.measure.generation import generator_for
from hildanext.measure.task import EvalContext, Outcome, Task
from hildanext.registry import build
from hildanext.report.intervals import Measure

WORDS = {"tokens_per_forward_unfused": "unfused", "positions_per_forward": "positions per forward"}
COSTS = tuple(WORDS)


class Steps(Task):
    """One measure of another task at every pair of thresholds, with what a forward brought and cost beside it."""

    task: TaskSection = Field(TaskSection(type="storyworld", answers=0), description="the task that is repeated")
    measure: str = Field("valid", description="the measure of that task that is the quality")
    tau_mask: tuple[float, ...] = Field((0.5, 0.7, 0.9, 0.99, 1.0), description="thresholds of filling, probabilities")
    tau_edit: tuple[float | Literal["preset"] | None, ...] = Field(
        ("preset",), description="thresholds of editing, probabilities; null: no editing"
    )

    def ready(self) -> None:
        """Open what the inner task reads."""
        self._inner().ready()

    def run(self, context: EvalContext) -> Outcome:
        """Run the inner task at every setting."""
        inner = self._inner()
        measures: dict[str, Measure] = {}
        points: list[dict[str, Any]] = []
        for tau_mask in self.tau_mask:
            for tau_edit in self.tau_edit:
                found = inner.run(_at(context, tau_mask, tau_edit))
                name = f"tau_mask {tau_mask:g}, tau_edit {'off' if tau_edit is None else tau_edit}"
                quality, tpf = found.measures[self.measure], found.measures["tokens_per_forward"]
                beside = {cost: found.measures[cost] for cost in COSTS if cost in found.measures}
                context.console.say(
                    f"{name}: {self.measure} {quality.text()}, {tpf.value:.2f} tokens per forward"
                    + "".join(f", {WORDS[cost]} {one.value:.2f}" for cost, one in beside.items())
                )
                measures |= {f"{self.measure} at {name}": quality, f"tokens_per_forward at {name}": tpf}
                measures |= {f"{cost} at {name}": one for cost, one in beside.items()}
                point = {"x": tpf.value, "y": quality.value, "low": quality.low, "high": quality.high}
                point |= {cost: one.value for cost, one in beside.items()}
                points.append(point | {"tau_mask": tau_mask, "tau_edit": tau_edit, "label": f"{tau_mask:g}"})
        return Outcome(measures, {"settings": len(points)}, (), {"frontier": points})

    def _inner(self) -> Task:
        inner: Task = build("tasks", self.task, "eval.tasks.steps.task")
        return inner


def _at(context: EvalContext, tau_mask: float, tau_edit: Any) -> EvalContext:
    decode = context.config.decode.model_copy(update={"tau_mask": tau_mask, "tau_edit": tau_edit})
    config = context.config.model_copy(update={"decode": decode})
    return replace(context, config=config, generator=generator_for("diffusion", context.loaded, decode))
