# The demo's parts that judge the bundled pair: converted now, likelihood, quality against speed.
# Entry points: conversion, likelihood, frontier.
# Parent: the bundled AR model. Fresh child: the parent converted a minute ago. Bundled child: converted at leisure.
"""Parts of the demo that compare parent and children."""

from __future__ import annotations

from typing import Any

from hildanext.config.data import DataConfig, SourceSection, TokenizeConfig
from hildanext.config.decode import MODES
from hildanext.config.model import ModelConfig
from hildanext.config.train import LadderConfig, ObjectiveSection, OptimizerConfig, TrainConfig
from hildanext.measure.generation import ARGenerator, DiffusionGenerator, Generator
from hildanext.measure.task import Outcome
from hildanext.measure.tasks.nll import Nll
from hildanext.measure.tasks.storyworld import Storyworld
from hildanext.progress import Console
from hildanext.report.charts import Axes, Series, lines
from hildanext.report.page import Section
from hildanext.selftest.demo.part import SEED, Part, Stage

WINDOW, ROWS = 256, 8
STORIES = {"type": "storyworld", "seed": 23, "chat": 0, "arithmetic": 0, "coding": 0}


def conversion(stage: Stage) -> Part:
    """Make data, convert the bundled parent for a minute, keep the fresh child."""
    from hildanext.data.prepare import prepare
    from hildanext.data.tokenize import tokenize
    from hildanext.train.recipes.conversion import train_command

    config = _conversion_config(stage)
    prepare(config, stage.console)
    tokenize(config, stage.console)
    report = train_command(config, Console(quiet=stage.console.quiet), "convert-wsd", None)
    stage.made["fresh"] = report["model"]
    header = ("block", "bound before, nats per token", "bound after")
    before, after = report["first"]["nll"], report["last"]["nll"]
    rows = [(f"{block}", f"{before[block]:.2f}", f"{after[block]:.2f}") for block in before]
    climbed = ", ".join(f"{one['block']}" for one in report["stages"])
    prose = (
        "The parent's weights are where it starts; what changes is what a position may see and what it must predict. "
        f"{report['steps']} optimiser steps, the block size going through {climbed}. The parent's own NLL on this text "
        f"is {report['parent_nll']:.2f} nats per token; the bundled child was trained the same way for longer."
    )
    keep = ("steps", "parent_nll", "first", "last", "stages")
    return Part(Section("The bundled parent, converted just now", prose, header, rows), {k: report[k] for k in keep})


def _conversion_config(stage: Stage) -> Any:
    paths = stage.config.paths.model_copy(update={"data": str(stage.work / "data"), "runs": str(stage.work)})
    source = SourceSection.model_validate(STORIES | {"stories": stage.sizes.documents})
    train = TrainConfig(
        steps=stage.sizes.steps, batch=ROWS, eval_rows=8, eval_samples=1, eval_every=0, checkpoint_every=0
    )
    update = {
        "paths": paths, "train": train, "tokenize": TokenizeConfig(window=WINDOW),
        "data": DataConfig(name="demo", sources=(source,), eval_share=0.05, workers=1),
        "model": ModelConfig(path="tiny-parent"), "objective": ObjectiveSection(type="mask_and_edit"),
        "ladder": LadderConfig(warmup=(1, 4, 32), stable=(0,), decay_to=32, shares=(0.4, 0.2, 0.4)),
        "optimizer": OptimizerConfig(lr=2e-3, schedule="wsd", decay=0.4, weight_decay=0.01),
    }  # fmt: skip
    return stage.config.model_copy(update=update)


def likelihood(stage: Stage) -> Part:
    """NLL bounds per block size of both children, the parent's NLL and the true entropy, on held-out stories."""
    blocks = (1, 4, 16, 32)
    task = Nll(limit=stage.sizes.nll_stories, blocks=blocks, samples=stage.sizes.samples, autoregressive=False)
    alone = task.model_copy(update={"blocks": (), "autoregressive": True})
    parent = _nll(stage, alone, "parent")
    found = {name: _nll(stage, task, name) for name in ("fresh", "child")}
    truth, own = parent.measures["true_entropy"].value, parent.measures["autoregressive"].value
    flat = [{"x": block, "y": 0.0} for block in (blocks[0], blocks[-1])]
    series = [
        Series("fresh child, bound", found["fresh"].series["bound"]),
        Series("bundled child, bound", found["child"].series["bound"]),
        Series("parent, exact", [point | {"y": own} for point in flat], dashed=True),
        Series("true entropy", [point | {"y": truth} for point in flat], dashed=True),
    ]
    prose = (
        "Nats per token of held-out stories from their second sentence on; lower is better, and the generator's own "
        "entropy is the floor. A child's number is an upper bound (the block ELBO), the parent's is exact."
    )
    header = ("model", *(f"block {block}" for block in blocks))
    names = {"fresh": "fresh child", "child": "bundled child"}
    rows = [(names[name], *(f"{found[name].measures[f'block_{b}'].value:.3f}" for b in blocks)) for name in found]
    rows += [("parent, left to right", f"{own:.3f}"), ("true entropy", f"{truth:.3f}")]
    rows = [(*row, *[""] * (len(header) - len(row))) for row in rows]
    chart = lines(series, Axes("block size, tokens", "nats per token", log_x=True, floor=0.0))
    data = {"parent": parent.as_dict(), **{name: outcome.as_dict() for name, outcome in found.items()}}
    return Part(Section("How well each model knows the text", prose, header, rows, [chart]), data)


def _nll(stage: Stage, task: Nll, name: str) -> Outcome:
    model = stage.model(name)
    return task.run(stage.context(model, DiffusionGenerator(model, stage.config.decode)))


def frontier(stage: Stage) -> Part:
    """Share of valid stories against tokens per forward: the parent, the bundled child in its modes and at several
    thresholds."""
    points: dict[str, list[dict[str, Any]]] = {
        "parent": [_ar_point(stage, 1.0, "AR, sampled"), _ar_point(stage, 0.0, "AR")]
    }
    points["child, modes"] = [_point(stage, {"mode": mode}, mode) for mode in MODES]
    points["child, modes"].append(_point(stage, {"mode": "Q_MODE", "temperature": 1.0}, "Q_MODE, sampled"))
    for name, edit in (("child, editing", "preset"), ("child, no editing", None)):
        settings = [{"mode": "S_MODE", "tau_mask": tau, "tau_edit": edit} for tau in stage.sizes.taus]
        points[name] = [_point(stage, values, f"{values['tau_mask']:g}") for values in settings]
    series = [
        Series("parent", points["parent"], joined=False),
        Series("bundled child, its modes", points["child, modes"], joined=False),
        Series("S_MODE at other tau_mask", points["child, editing"]),
        Series("the same without editing", points["child, no editing"]),
    ]
    prose = (
        f"{stage.sizes.stories} stories from the same first sentences. Valid means that no sentence contradicts "
        "another and the plot is whole, as the generator's own checker says; one wrong word makes a story invalid. "
        "Numbers on the curves are tau_mask; an autoregressive decoder stands at one token per forward. Sampled means "
        "temperature 1, the rest is greedy. Unfused counts every commit of a block as a forward of its own."
    )
    header = (
        "model",
        "mode or tau_mask",
        "valid",
        "95 % interval",
        "problems per story",
        "tokens per forward",
        "unfused",
        "positions per forward",
        "edits per story",
    )
    rows = [_row(name, point) for name, several in points.items() for point in several]
    chart = lines(series, Axes("tokens per forward", "valid stories", percent=True, floor=0.0))
    best = max(points["child, modes"], key=_speed_then_quality)
    told = f"tokens per forward in {best['label']} at {100 * best['y']:.0f} % valid stories"
    fact = (f"{best['x']:.1f}", f"{told} (parent: {100 * points['parent'][1]['y']:.0f} %)")
    return Part(Section("Quality against speed", prose, header, rows, [chart], wide=True), {"points": points}, (fact,))


def _speed_then_quality(point: dict[str, Any]) -> tuple[float, float]:
    return round(float(point["y"]), 1), float(point["x"])


def _ar_point(stage: Stage, temperature: float, label: str) -> dict[str, Any]:
    model = stage.model("parent")
    return _judged(stage, model, ARGenerator(model, stage.config.decode), temperature) | {"label": label}


def _point(stage: Stage, settings: dict[str, Any], label: str) -> dict[str, Any]:
    model = stage.model("child")
    generator = DiffusionGenerator(model, stage.config.decode.model_copy(update=settings))
    point = _judged(stage, model, generator, None) | {"label": label, "settings": settings}
    editing = "" if settings.get("tau_edit", "preset") == "preset" else ", editing off"
    stage.console.say(f"{label}{editing}: {100 * point['y']:.0f} % valid, {point['x']:.2f} tokens per forward")
    return point


def _judged(stage: Stage, model: Any, generator: Generator, temperature: float | None) -> dict[str, Any]:
    task = Storyworld(
        stories=stage.sizes.stories,
        answers=0,
        temperature=temperature,
        max_new_tokens=stage.sizes.new_tokens,
        seed=SEED,
    )
    found = task.run(stage.context(model, generator)).measures
    valid, tpf = found["valid"], found["tokens_per_forward"]
    point = {"x": tpf.value, "y": valid.value, "low": valid.low, "high": valid.high, "items": valid.items}
    point |= {"unfused": found["tokens_per_forward_unfused"].value, "width": found["positions_per_forward"].value}
    return point | {"problems": found["problems_per_story"].value, "edits": found["edits_per_text"].value}


def _row(name: str, point: dict[str, Any]) -> tuple[str, ...]:
    span = f"{100 * point['low']:.0f} to {100 * point['high']:.0f} %"
    costs = (f"{point['x']:.2f}", f"{point['unfused']:.2f}", f"{point['width']:.1f}")
    numbers = (f"{point['problems']:.2f}", *costs, f"{point['edits']:.1f}")
    return (name, str(point["label"]), f"{100 * point['y']:.0f} %", span, *numbers)
