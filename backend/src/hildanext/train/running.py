# What convert-wsd and sft do around a training: ranks, run directory, plan, signals.
# Entry points: train_command, plan_command.
# Only the first rank owns the run directory; the others learn its path from it.
"""The commands' work."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.data.prepare import prepare
from hildanext.data.shards import ShardSet
from hildanext.data.tokenize import tokenize
from hildanext.errors import DataError, ModelError
from hildanext.models.load import choose_device, choose_dtype
from hildanext.models.preflight import estimate
from hildanext.progress import Console
from hildanext.run_dir import RunDir
from hildanext.train.conversion import train
from hildanext.train.distributed import Ranks, open_ranks
from hildanext.train.plan import Plan, arithmetic_rate, make_ladder, show_plan
from hildanext.train.training import is_causal, open_training, shards_folder


def train_command(config: Config, console: Console, command: str, path: Path | None) -> dict[str, Any]:
    """Run a whole training in a run directory; returns its report."""
    ranks = open_ranks(config.train.parallel, config.model.device)
    try:
        run = _run_dir(config, command, path, ranks)
        quiet = console if ranks.first else Console(quiet=True)
        with run.running() if ranks.first else nullcontext(run):
            _prepare(config, quiet, ranks)
            return train(open_training(config, quiet, run, ranks))
    finally:
        ranks.close()


def plan_command(config: Config, console: Console) -> dict[str, Any]:
    """Show the plan; trains nothing and writes nothing. Needs neither model nor data."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    window = _window(config)
    ladder = make_ladder(config, window, ranks, is_causal(config))
    per_step = config.train.batch * config.train.accumulate * ranks * window
    memory, seconds = _cost(config, window, ranks)
    plan = Plan(ladder, per_step, seconds, memory)
    show_plan(plan, console)
    return plan.as_json()


def _cost(config: Config, window: int, ranks: int) -> tuple[dict[str, Any], float | None]:
    try:
        found = estimate(config, window, ranks=ranks)
    except ModelError:
        return {}, None
    device = choose_device(config.model.device)
    size = choose_dtype(config.model.dtype, device)[0].itemsize
    return found, 6.0 * found["parameters"] / size / arithmetic_rate(device) / ranks


def _window(config: Config) -> int:
    try:
        return ShardSet.open(shards_folder(config) / config.train.split).window
    except DataError:
        return config.tokenize.window


def _prepare(config: Config, console: Console, ranks: Ranks) -> None:
    if config.train.prepare and ranks.first and not shards_folder(config).is_dir():
        prepare(config, console)
        tokenize(config, console)
    ranks.wait()


def _run_dir(config: Config, command: str, path: Path | None, ranks: Ranks) -> RunDir:
    run = RunDir.create(config, command, path) if ranks.first else None
    told = ranks.tell(str(run.path) if run else "")
    return run or RunDir(Path(told))
