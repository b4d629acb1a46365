# What a run will do, before it does it: stages, steps, tokens, and estimates of time and memory.
# Entry points: plan_command, Plan, arithmetic_rate.
# Time is arithmetic (6 operations per parameter and token) at the rate of one timed matrix product, so a lower bound;
# a plan needs neither model nor data.
"""The plan of a run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from hildanext.config import Config
from hildanext.core.block_ladder import Ladder, Stage
from hildanext.data.shards import ShardSet
from hildanext.errors import DataError, ModelError
from hildanext.models.load import choose_device, choose_dtype
from hildanext.models.preflight import estimate
from hildanext.progress import Console
from hildanext.train.training import make_ladder, shards_folder, tokens_per_step

MEMORY = ("parameters", "gradients", "optimizer", "activations", "logits", "total", "limit")


@dataclass(frozen=True)
class Plan:
    """A ladder with its cost. tokens_per_step counts every rank; seconds_per_token: of the plain L x L step, None where
    the model is not there; memory: bytes by part, empty then."""

    ladder: Ladder
    tokens_per_step: int
    seconds_per_token: float | None
    memory: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """One object per stage: phase, block, first, steps, tokens, seconds."""
        return [
            {**vars(stage), "tokens": stage.steps * self.tokens_per_step, "seconds": self._seconds(stage)}
            for stage in self.ladder.stages
        ]

    def _seconds(self, stage: Stage) -> float | None:
        halves = 1 if stage.phase == "autoregressive" or stage.block >= self.ladder.window else 2
        known = self.seconds_per_token
        return None if known is None else stage.steps * self.tokens_per_step * known * halves

    def as_json(self) -> dict[str, Any]:
        """The whole plan."""
        rows = self.rows()
        seconds = None if self.seconds_per_token is None else sum(row["seconds"] for row in rows)
        return {
            "window": self.ladder.window, "steps": self.ladder.steps, "tokens_per_step": self.tokens_per_step,
            "tokens": self.ladder.steps * self.tokens_per_step, "stages": rows, "seconds": seconds,
            "memory": self.memory,
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
    """Show the plan of a run; trains nothing and writes nothing. Needs neither model nor data."""
    ranks, window = int(os.environ.get("WORLD_SIZE", "1")), _window(config)
    memory, seconds = _cost(config, window, ranks)
    plan = Plan(make_ladder(config, window, ranks), tokens_per_step(config, window, ranks), seconds, memory)
    _show(plan, console)
    return plan.as_json()


def _window(config: Config) -> int:
    try:
        return ShardSet.open(shards_folder(config) / config.train.split).window
    except DataError:
        return config.tokenize.window


def _cost(config: Config, window: int, ranks: int) -> tuple[dict[str, Any], float | None]:
    try:
        found = estimate(config, window, ranks=ranks)
    except ModelError:
        return {}, None
    device = choose_device(config.model.device)
    stored = choose_dtype(config.model.dtype, device)[0]
    used = torch.bfloat16 if config.train.autocast == "bfloat16" else stored
    return found, 6.0 * found["parameters"] / stored.itemsize / arithmetic_rate(device, dtype=used) / ranks


def _show(plan: Plan, console: Console) -> None:
    rows = [
        (row["phase"], str(row["block"]), f"{row['first']}", f"{row['steps']}", f"{row['tokens']:,}", _minutes(row))
        for row in plan.rows()
    ]
    console.table(rows, ("stage", "block", "from step", "steps", "tokens", "minutes"))
    console.say(f"{plan.ladder.steps * plan.tokens_per_step:,} tokens in all")
    told = plan.seconds_per_token is not None
    console.say("time: at least this, from one timed matrix product" if told else "time: not estimated, no model here")
    parts = ", ".join(f"{name} {plan.memory[name] / 2**30:.2f}" for name in MEMORY if plan.memory.get(name))
    console.say(f"memory, GiB: {parts}" if parts else "memory: not estimated, no model here")


def _minutes(row: dict[str, Any]) -> str:
    return "?" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"
