# What convert-wsd and sft do around a session: ranks, run directory, plan, signals.
# Entry points: train_command, plan_command.
# Only the first rank owns the run directory; the others learn its path from it.
"""The commands' work."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.data.shards import ShardSet
from hildanext.errors import DataError
from hildanext.progress import Console
from hildanext.run_dir import RunDir
from hildanext.train.conversion import is_causal, open_session, shards_folder, train_session
from hildanext.train.distributed import World, open_world
from hildanext.train.plan import Plan, make_ladder, show_plan


def train_command(config: Config, console: Console, command: str, path: Path | None) -> dict[str, Any]:
    """Run a whole training in a run directory; returns its report."""
    world = open_world(config.train.parallel, config.model.device)
    try:
        run = _run_dir(config, command, path, world)
        quiet = console if world.first else Console(quiet=True)
        with run.running() if world.first else nullcontext(run):
            return train_session(open_session(config, quiet, run, world))
    finally:
        world.close()


def plan_command(config: Config, console: Console) -> dict[str, Any]:
    """Show the plan; trains nothing and writes nothing. Needs neither model nor data."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    window = _window(config)
    ladder = make_ladder(config, window, world, is_causal(config))
    per_step = config.train.batch * config.train.accumulate * world * window
    plan = Plan(ladder, per_step, None, {})
    show_plan(plan, console)
    return plan.as_json()


def _window(config: Config) -> int:
    try:
        return ShardSet.open(shards_folder(config) / config.train.split).window
    except DataError:
        return config.tokenize.window


def _run_dir(config: Config, command: str, path: Path | None, world: World) -> RunDir:
    run = RunDir.create(config, command, path) if world.first else None
    told = world.tell(str(run.path) if run else "")
    return run or RunDir(Path(told))
