# hildanext dpo: preference training of a diffusion model on pairs of answers, by DPO on the block bound.
# Entry points: add_arguments, run. BASE holds what differs from sft, below the configuration file; ADAPTED the learning
# rate of adapters.
# The section dpo names the pairs and the objective; train, ladder and optimizer are as ever.
"""Subcommand `dpo`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_training

HELP = "train a diffusion model on chosen and rejected answers (DPO on the block bound)"
JOB = ("model", "ladder", "optimizer", "train", "dpo", "seed")
BASE = {
    "ladder": {"fixed": 32},
    "optimizer": {"lr": 1e-6, "weight_decay": 0.0},
    "train": {"split": "sft_train", "eval_split": "sft_eval"},
}
ADAPTED = {"optimizer": {"lr": 2e-5}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--pairs FILE`, which is dpo.pairs."""
    add_training(parser)
    parser.add_argument("--pairs", dest="dpo.pairs", metavar="FILE", help="rows with a prompt, chosen and rejected")


def run(context: Context) -> dict[str, Any]:
    """The report of the run."""
    from hildanext.train.recipes.pairs import dpo_command

    return dpo_command(context.config, context.console, context.args.run_dir)
