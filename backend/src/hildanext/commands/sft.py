# hildanext sft: chat data on a diffusion model: one block size, noise in responses only, several turns.
# Entry points: add_arguments, run. BASE holds what differs from convert-wsd, below the configuration file; ADAPTED the
# learning rate of adapters, which begin at zero and take about twenty times that of the weights.
# Prompt tokens are in both halves and never masked: `learn` of the shards marks the responses.
"""Subcommand `sft`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_training

HELP = "fine-tune a block-diffusion model on chat data"
JOB = ("model", "objective", "ladder", "optimizer", "train", "seed")
BASE = {
    "objective": {
        "type": "multi_turn",
        "turns": 2,
        "weighting": "uniform",
        "noise": {"low": 0.2, "high": 0.8, "complementary": True},
    },
    "ladder": {"fixed": 32},
    "model": {"block_grid": "per_document"},
    "optimizer": {"lr": 1e-5},
    "train": {"split": "sft_train", "eval_split": "sft_eval"},
}

ADAPTED = {"optimizer": {"lr": 2e-4}}


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
    return train_command(context.config, context.console, "sft", context.args.run_dir)
