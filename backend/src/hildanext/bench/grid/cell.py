# One cell of a grid: its stages one after the other within the budget, then its evaluation.
# Entry points: run_cell, Cell, stage_values.
# A finished stage has its report and is not run again; one that was stopped goes on from its checkpoint.
"""Cells."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hildanext.bench.grid.scoring import scored
from hildanext.config import Config
from hildanext.config.for_command import command_config
from hildanext.config.grid import TRAINING, StageConfig
from hildanext.config.loader import merge
from hildanext.disk import write_atomic
from hildanext.errors import ConfigError, RunError
from hildanext.models.hardware import peak_memory
from hildanext.progress import Console
from hildanext.train.anchors import write_anchors
from hildanext.train.recipes.conversion import train_command
from hildanext.train.recipes.latents import latent_command
from hildanext.train.recipes.on_policy import on_policy_command
from hildanext.train.training import open_shards, tokens_per_step
from hildanext.train.trajectories import write_trajectories

RESULT = "result.json"


@dataclass(frozen=True)
class Cell:
    """A cell with its seed. folder: what it writes."""

    name: str
    seed: int
    folder: Path
    config: Config

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """What it consists of."""
        return self.config.grid.cells[self.name]

    def begun_alike(self, number: int) -> list[Path]:
        """Folders of the other cells whose stages up to `number` are these, with as much of the budget left after them:
        what one of them has trained is not trained again. Stages that write or read files of their cell are its own."""
        own, rest = self.stages[: number + 1], _shares(self.stages[number + 1 :])
        if any(one.command not in TRAINING or "{cell}" in json.dumps(one.set) for one in own):
            return []
        return [
            folder_of(self.folder.parents[1], name, self.seed)
            for name, stages in self.config.grid.cells.items()
            if name != self.name and stages[: number + 1] == own and _shares(stages[number + 1 :]) == rest
        ]


def folder_of(root: Path, name: str, seed: int) -> Path:
    """Where a cell with its seed is; ConfigError for a name that makes no folder."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.")
    if not plain:
        raise ConfigError(f"grid.cells: {name!r} names no folder; use letters or digits")
    return root / "cells" / f"{plain}-{seed}"


def _shares(stages: Sequence[StageConfig]) -> float:
    return sum(one.share for one in stages if one.command in TRAINING)


def _report_file(number: int) -> str:
    return f"stage-{number + 1}-done.json"


def run_cell(cell: Cell, console: Console) -> dict[str, Any]:
    """Run what is left of a cell and score it; result.json in its folder. RunError where a stage leaves no model."""
    done: list[dict[str, Any]] = []
    model = str(cell.config.model.path)
    for number in range(len(cell.stages)):
        report = _stage(cell, number, model, done, console)
        done.append(report)
        model = report.get("model", model)
    if model == str(cell.config.model.path):
        raise RunError(f"{cell.folder}: no stage of {cell.name} left a model")
    trained = [one for one in done if "steps" in one]
    result = {
        "cell": cell.name, "seed": cell.seed, "model": model, "stages": done,
        "steps": sum(one["steps"] for one in trained), "tokens": sum(one["tokens"] for one in trained),
        "processor": sum(one["processor"] for one in done), "memory": max(one["memory"] for one in done),
        **scored(cell.config, model, console),
    }  # fmt: skip
    write_atomic(cell.folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def stage_values(cell: Cell, number: int, model: str) -> dict[str, Any]:
    """The configuration of a stage: the grid's file, the seed, the model before it, and its own values."""
    given = cell.config.model_dump(mode="json", exclude_unset=True, exclude={"grid", "description"})
    stage = cell.stages[number]
    placed = {name: {"folder": str(cell.folder / name)} for name in ("trajectories", "anchors")}
    own = merge(placed, {"seed": cell.seed, "model": {"path": model}})
    names = {"{cell}": str(cell.folder), "{parent}": str(cell.config.model.path)}
    return merge(merge(given, own), _placed(stage.set, names))


def _placed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _placed(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_placed(item, names) for item in value]
    for name, place in names.items() if isinstance(value, str) else ():
        value = value.replace(name, place)
    return value


def _stage(cell: Cell, number: int, model: str, done: Sequence[Mapping[str, Any]], console: Console) -> dict[str, Any]:
    stage, file = cell.stages[number], cell.folder / f"stage-{number + 1}.json"
    known = cell.folder / _report_file(number)
    if known.exists():
        recorded: dict[str, Any] = json.loads(known.read_text(encoding="utf-8"))
        return recorded
    if adopted := _adopted(cell, number):
        write_atomic(known, json.dumps(adopted, indent=2) + "\n")
        return adopted
    values, begun = stage_values(cell, number, model), time.process_time()
    if stage.command in TRAINING:
        report = _trained(cell, number, values, done, console)
    else:
        write_atomic(file, json.dumps(values, indent=2) + "\n")
        config = command_config(stage.command, file)
        made = (write_trajectories if stage.command == "trajectories" else write_anchors)(config, console)
        report = {"command": stage.command, "processor": time.process_time() - begun, "made": made, "memory": 0}
    write_atomic(known, json.dumps(report, indent=2) + "\n")
    return report


def _adopted(cell: Cell, number: int) -> dict[str, Any] | None:
    """The report of this stage as another cell has trained it, the stage copied into this cell without its checkpoints,
    so that each cell stays whole by itself; None where none has, or this cell has begun its own."""
    own = cell.folder / f"stage-{number + 1}"
    if own.exists() or own.with_suffix(".json").exists():
        return None
    for other in cell.begun_alike(number):
        report, stage = other / _report_file(number), other / own.name
        if not report.exists() or not stage.is_dir():
            continue
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        copying = own.with_name(f"{own.name}-copying")
        shutil.rmtree(copying, ignore_errors=True)
        shutil.copytree(stage, copying, ignore=shutil.ignore_patterns("checkpoints", ".lock"))
        copying.rename(own)
        return {**found, "model": str(own / Path(found["model"]).relative_to(stage))}
    return None


def _trained(
    cell: Cell, number: int, values: dict[str, Any], done: Sequence[Mapping[str, Any]], console: Console
) -> dict[str, Any]:
    stage, path = cell.stages[number], cell.folder / f"stage-{number + 1}"
    file = path.with_suffix(".json")
    if not file.exists():
        asked = cell.folder / "probe.json"  # file appears with its steps, so that a stop in the probe leaves none
        write_atomic(asked, json.dumps(values, indent=2) + "\n")
        steps = _steps(cell, number, command_config(stage.command, asked), done, console)
        values = merge(values, {"train": {"steps": steps, "tokens": 0}})
        write_atomic(file, json.dumps(values, indent=2) + "\n")
    config = command_config(stage.command, file)
    if any((path / "checkpoints").glob("step-*")):
        config = config.model_copy(update={"train": config.train.model_copy(update={"resume": "latest"})})
    report = _train(stage.command, config, path, console)
    records = _records(path)
    window = open_shards(config, config.train.split).window
    return {
        "command": stage.command, "model": report["model"], "steps": report["steps"],
        "tokens": report["steps"] * tokens_per_step(config, window, 1),
        "processor": sum(record["processor"] for record in records),
        "seconds": sum(record["seconds"] for record in records), "memory": peak_memory(None),
    }  # fmt: skip


def _train(command: str, config: Config, path: Path, console: Console) -> dict[str, Any]:
    if command == "on-policy":
        return on_policy_command(config, console, path)
    if command == "latent":
        return latent_command(config, console, path)
    return train_command(config, console, command, path)


def _records(path: Path) -> list[dict[str, Any]]:
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "processor" in record]


def _steps(
    cell: Cell, number: int, config: Config, done: Sequence[Mapping[str, Any]], console: Console
) -> int:  # fmt: skip
    grid, part = cell.config.grid, cell.stages[number].share / _shares(cell.stages[number:])
    if not grid.seconds:
        each = tokens_per_step(config, open_shards(config, config.train.split).window, 1)
        spent = sum(int(one.get("tokens", 0)) for one in done)
        return max(1, round((grid.tokens - spent) * part / each))
    place = cell.folder / "probe"
    shutil.rmtree(place, ignore_errors=True)
    short = {"steps": grid.probe, "tokens": 0, "eval_every": 0, "checkpoint_every": 0, "eval_rows": 1, "parity": False}
    probe = config.train.model_copy(update={**short, "eval_samples": 1, "trackers": ()})
    _train(cell.stages[number].command, config.model_copy(update={"train": probe}), place, Console(quiet=True))
    pace = float(median(record["processor"] for record in _records(place)[2:]))
    shutil.rmtree(place)
    before = sum(float(one["processor"]) for one in done)
    left = grid.seconds - before
    if left <= 0:
        raise RunError(
            f"{cell.folder}: what comes before stage {number + 1} of {cell.name} took {before:.0f} of"
            f" {grid.seconds:g} processor seconds; record fewer rows (trajectories.rows, anchors.rows), or give more"
        )
    console.say(f"{cell.name}, seed {cell.seed}: {pace:.3f} processor seconds a step, {left * part:.0f} to spend")
    return max(1, round(left * part / pace))
