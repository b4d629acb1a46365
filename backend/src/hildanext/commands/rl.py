# hildanext rl: reinforcement learning of a diffusion model on verifiable rewards.
# Entry points: add_arguments, run. BASE holds what differs from sft, below the configuration file; ADAPTED the learning
# rate of adapters.
# The section rl says what is asked and rewarded; decode, how answers are drawn; train, ladder and optimizer as ever.
"""Subcommand `rl`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_training

HELP = "reinforce a diffusion model on answers it decodes itself, by rewards that can be checked"
JOB = ("model", "ladder", "optimizer", "train", "rl", "decode", "seed")
BASE = {
    "ladder": {"fixed": 32},
    "optimizer": {"lr": 2e-6, "weight_decay": 0.0, "clip": 0.2, "schedule": "constant", "betas": [0.9, 0.99]},
    "decode": {"tau_mask": 0.9, "tau_edit": None, "temperature": 1.0},
    "train": {"split": "sft_train", "eval_split": "sft_eval", "checkpoint_every": 10, "eval_every": 50, "steps": 100},
}
ADAPTED = {"optimizer": {"lr": 2e-5}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--resume [RUN]`, `--watch`, `--print-plan`."""
    add_training(parser)
    parser.add_argument("--print-plan", action="store_true", help="print the plan and its memory, and train nothing")


def run(context: Context) -> dict[str, Any]:
    """The report of the run."""
    from hildanext.train.recipes.reinforce import rl_command
    from hildanext.train.recipes.reinforce_plan import policy_plan

    if context.args.print_plan:
        return policy_plan(context.config, context.console)
    return rl_command(context.config, context.console, context.args.run_dir)
