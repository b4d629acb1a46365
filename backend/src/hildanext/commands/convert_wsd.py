# hildanext convert-wsd: an autoregressive model in, a block-diffusion model out; also trains a parent.
# Entry points: add_arguments, run.
# With --set objective.type=autoregressive the same command trains a parent; no ladder, no mask token then.
"""Subcommand `convert-wsd`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_training

HELP = "convert an AR model to block diffusion (warm-up, stable, decay), or train an AR parent"
JOB = ("model", "objective", "ladder", "optimizer", "train", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--resume [RUN]`, `--watch`, `--print-plan`."""
    add_training(parser)
    parser.add_argument("--print-plan", action="store_true", help="print the plan and train nothing")


def run(context: Context) -> dict[str, Any]:
    """The report of the run, or the plan."""
    from hildanext.train.plan import plan_command
    from hildanext.train.recipes.conversion import train_command

    if context.args.print_plan:
        return plan_command(context.config, context.console)
    return train_command(context.config, context.console, "convert-wsd", context.args.run_dir)
