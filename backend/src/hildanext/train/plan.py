# What a run will do, before it does it: stages, steps, tokens, and estimates of time and memory under its objective.
# Entry points: plan_command, Plan, arithmetic_rate.
# Time is measured on a shallow copy of the network (rehearsal.py); for kinds of model without layers to leave out it is
# arithmetic, 6 operations per parameter and token. Without data the window is tokenize.window and every token learned.
"""The plan of a run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from hildanext.config import Config
from hildanext.core.block_ladder import Ladder, Stage
from hildanext.core.types import Objective
from hildanext.data.shards import ShardSet
from hildanext.errors import DataError
from hildanext.models.footprint import NetworkFootprint
from hildanext.models.hardware import total_memory
from hildanext.models.load import NEW, choose_device, choose_dtype, kind_at
from hildanext.models.preflight import PARTS, estimate
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.train.cards import on_cards
from hildanext.train.rehearsal import Pace, rehearse
from hildanext.train.training import make_ladder, shards_folder, tokens_per_step

MEMORY = (*PARTS, "total", "limit")
COPY_SHARE = 0.25


@dataclass(frozen=True)
class Plan:
    """A ladder with its cost. tokens_per_step counts every rank; step_seconds: of a step whose forwards have no clean
    half, and of one whose forwards have one; None and no memory, bytes by part, before the model can be known. cards:
    what a step would take on cards (train/cards.py)."""

    ladder: Ladder
    tokens_per_step: int
    step_seconds: tuple[float, float] | None
    memory: dict[str, Any]
    cards: tuple[dict[str, Any], ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One object per stage: phase, block, first, steps, tokens, seconds."""
        return [
            {**vars(stage), "tokens": stage.steps * self.tokens_per_step, "seconds": self._seconds(stage)}
            for stage in self.ladder.stages
        ]

    def _seconds(self, stage: Stage) -> float | None:
        if self.step_seconds is None:
            return None
        whole = stage.phase == "autoregressive" or stage.block >= self.ladder.window
        return stage.steps * self.step_seconds[0 if whole else 1]

    def as_json(self) -> dict[str, Any]:
        """The whole plan."""
        rows = self.rows()
        seconds = None if self.step_seconds is None else sum(row["seconds"] for row in rows)
        return {
            "window": self.ladder.window, "steps": self.ladder.steps, "tokens_per_step": self.tokens_per_step,
            "tokens": self.ladder.steps * self.tokens_per_step, "stages": rows, "seconds": seconds,
            "memory": self.memory, "cards": list(self.cards),
        }  # fmt: skip


def arithmetic_rate(device: torch.device, size: int = 512, tries: int = 3, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a matrix product of `size` rows and columns on the device."""
    left = torch.ones(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(tries + 1):
        begun = time.perf_counter()
        float((left @ left)[0, 0])
        best = max(best, 2.0 * size**3 / (time.perf_counter() - begun))
    return best


def plan_command(config: Config, console: Console) -> dict[str, Any]:
    """Show the plan of a run; trains nothing and writes nothing. Needs no data. ModelError, after the stages, where the
    model is not there."""
    ranks, shards = config.train.ranks(int(os.environ.get("WORLD_SIZE", "1"))), _shards(config)
    window = shards.window if shards else config.tokenize.window
    apart = config.train.apart(ranks)
    ladder, tokens = make_ladder(config, window, apart), tokens_per_step(config, window, apart)
    _show_stages(Plan(ladder, tokens, None, {}), console)
    plan = Plan(ladder, tokens, *_cost(config, ladder, shards, ranks))
    _show_cost(plan, console)
    return plan.as_json()


def _shards(config: Config) -> ShardSet | None:
    try:
        return ShardSet.open(shards_folder(config) / config.train.split)
    except DataError:
        return None


def _cost(
    config: Config, ladder: Ladder, shards: ShardSet | None, ranks: int
) -> tuple[tuple[float, float] | None, dict[str, Any], tuple[dict[str, Any], ...]]:
    model = config.model
    if model.path == NEW and not model.new.tokenizer:
        tokenizer = shards.tokenizer if shards else ""
        if not tokenizer:
            return None, {}, ()
        model = model.model_copy(update={"new": model.new.model_copy(update={"tokenizer": tokenizer})})
    config = config.model_copy(update={"model": model})
    footprint, window = kind_at(model.path).footprint(model), ladder.window
    memory = estimate(config, window, ranks=ranks, footprint=footprint)
    objective: Objective = build("objectives", config.objective, "objective")
    learned = shards.manifest["learned"] / (len(shards) * window) if shards and len(shards) else 1.0
    below = [stage for stage in ladder.stages if stage.block < window and stage.phase != "autoregressive"]
    block = max(below, key=lambda stage: stage.steps).block if below else window
    pace = _pace(config, footprint, memory, (window, block))
    whole, pair = (pace.seconds(config, objective, learned * window, each) for each in (True, False))
    needed = sum(memory.get(name, 0) for name in PARTS if name not in ("process", "heap"))  # which a card has not
    return (whole, pair), memory, tuple(on_cards(config, footprint, objective, window, (learned * window, needed)))


def _pace(config: Config, footprint: Any, memory: dict[str, Any], sizes: tuple[int, int]) -> Pace:
    device = choose_device(config.model.device)
    stored = choose_dtype(config.model.dtype, device)[0]
    if isinstance(footprint, NetworkFootprint):
        copies = footprint.copy_bytes(stored)
        if device.type != "cpu" or copies <= COPY_SHARE * (total_memory() or copies):
            return rehearse(config, footprint.config, *sizes)
    used = torch.bfloat16 if config.train.autocast == "bfloat16" else stored
    row = 6.0 * sizes[0] * memory["parameters"] / stored.itemsize / arithmetic_rate(device, dtype=used)
    return Pace(2 * row, row, 0.0, 0.0, 0.0)


def _show_stages(plan: Plan, console: Console) -> None:
    rows = [
        (row["phase"], str(row["block"]), f"{row['first']}", f"{row['steps']}", f"{row['tokens']:,}")
        for row in plan.rows()
    ]
    console.table(rows, ("stage", "block", "from step", "steps", "tokens"))
    console.say(f"{plan.ladder.steps * plan.tokens_per_step:,} tokens in all")


def _show_cost(plan: Plan, console: Console) -> None:
    if plan.step_seconds is None:
        console.say("time and memory: not estimated, the new model's tokenizer is not there yet")
        return
    minutes = [f"{row['phase']} {row['block']}: {row['seconds'] / 60:.1f}" for row in plan.rows()]
    total = sum(row["seconds"] for row in plan.rows())
    console.say(f"minutes, if the machine does nothing else: {total / 60:.1f} ({', '.join(minutes)})")
    parts = ", ".join(f"{name} {plan.memory[name] / 2**30:.2f}" for name in MEMORY if plan.memory.get(name))
    console.say(f"memory, GiB: {parts}")
    if plan.cards:
        rows = [(card["card"], f"{card['seconds']:.2f}", "yes" if card["fits"] else "no") for card in plan.cards]
        console.table(rows, ("on one such card or rank, by arithmetic", "seconds a step", "fits"))
    if plan.memory.get("unsure"):
        console.warn(plan.memory["unsure"])
