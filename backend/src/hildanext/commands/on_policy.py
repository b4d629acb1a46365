# hildanext on-policy: the student answers prompts itself and learns from the AR parent what it should have said.
# Entry points: add_arguments, run. BASE holds what differs from convert-wsd, below the configuration file.
# The section decode says how the student decodes its answers; rollout, how many and how long.
"""Subcommand `on-policy`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_training

HELP = "distil the AR parent into a diffusion model on answers the model decodes itself"
JOB = ("model", "objective", "ladder", "optimizer", "train", "rollout", "decode", "seed")
BASE = {
    "objective": {
        "type": "distill",
        "kl_weight": 1.0,
        "m2t_weight": 0.0,
        "t2t_weight": 0.0,
        "keep_weight": 0.0,
        "weighting": "uniform",
        "normaliser": "masked",
    },
    "ladder": {"warmup": [4, 8], "stable": [16], "decay_to": 16, "shares": [0.6, 0.4, 0.0]},
    "optimizer": {"lr": 1e-5, "weight_decay": 0.0},
    "decode": {"tau_mask": 0.9, "tau_edit": None, "temperature": 1.0},
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
    from hildanext.train.recipes.on_policy import on_policy_command

    if context.args.print_plan:
        return plan_command(context.config, context.console)
    return on_policy_command(context.config, context.console, context.args.run_dir)
