# Runs the configured tasks on one model and writes the report: JSON, Markdown and PNG in a run directory.
# Entry points: evaluate.
# report.json holds settings, versions, seeds and the environment, so that a number can be traced to what made it.
"""Evaluation runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.measure.comparison import read_report, side_by_side
from hildanext.measure.task import EvalContext, Task
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.report.markdown import document
from hildanext.report.plots import png
from hildanext.run_dir import RunDir, write_atomic

FORMAT = 1


def evaluate(
    config: Config, console: Console, against: Sequence[Path] = (), run_dir: Path | None = None
) -> dict[str, Any]:
    """The report of all tasks of config.eval; report.json, report.md and plots/*.png in the run directory, written
    after every task. against: run directories or report files whose numbers stand beside these. DataError before
    anything runs where a task's file cannot be read."""
    others = [read_report(path) for path in against]
    tasks: list[Task] = [build("tasks", section, "eval.tasks") for section in config.eval.tasks]
    for task in tasks:
        task.ready()
    run = RunDir.create(config, "eval", run_dir)
    with run.running(console):
        loaded = load_model(config.model, console)
        run.environment(device=str(loaded.device), dtype=str(loaded.dtype), dtype_reason=loaded.dtype_reason)
        context = EvalContext.of(loaded, config, console)
        report = _header(config, run, context)
        for section, task in zip(config.eval.tasks, tasks, strict=True):
            done = _one(section.type, task, replace(context, failed=[]))
            report["tasks"].append(done)
            report["against"] = side_by_side(report, others)
            _write(run, report)
            _draw(run, report["tasks"], console)
            run.status(step=len(report["tasks"]), total=len(tasks))
        console.say(f"report: {run.path}/report.md")
    return report | {"run": str(run.path)}


def _header(config: Config, run: RunDir, context: EvalContext) -> dict[str, Any]:
    meta = context.loaded.meta
    return {
        "format": FORMAT,
        "run": run.path.name,
        "model": config.model.path,
        "parent": meta.parent,
        "block": meta.block,
        "generator": context.generator.kind,
        "decode": config.decode.model_dump(mode="json"),
        "seed": config.seed,
        "dtype": str(context.loaded.dtype),
        "device": str(context.loaded.device),
        "tasks": [],
        "against": [],
    }


def _one(name: str, task: Task, context: EvalContext) -> dict[str, Any]:
    context.console.say(f"task {name}, version {task.version}")
    started = time.monotonic()
    outcome = task.run(context)
    for label, measure in outcome.measures.items():
        context.console.say(f"  {label}: {measure.text()}, {measure.items} items")
    settings, wrong = task.model_dump(mode="json"), context.failed
    found = {"task": name, "version": task.version, "settings": settings, "seconds": time.monotonic() - started}
    found |= outcome.as_dict() | {"failed": wrong[: context.config.eval.samples]}
    if wrong:
        context.console.warn(f"task {name}: {len(wrong)} items failed and count as wrong")
        found["counts"] = {**outcome.counts, "failed items": len(wrong)}
    return found


def _write(run: RunDir, report: dict[str, Any]) -> None:
    run.write_json("report.json", report)
    write_atomic(run.path / "report.md", document(report))


def _draw(run: RunDir, tasks: Sequence[dict[str, Any]], console: Console) -> None:
    name, times = tasks[-1]["task"], sum(task["task"] == tasks[-1]["task"] for task in tasks)
    for series, points in tasks[-1]["series"].items():
        file = f"{name}-{series}.png" if times == 1 else f"{name}-{times}-{series}.png"
        why = png(run.plots / file, f"{name}: {series}", points)
        if why:
            console.warn(why)
