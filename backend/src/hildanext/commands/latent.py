# hildanext latent: train a latent diffusion model on a discrete one: latent.model says which type, with its fields.
# Entry points: add_arguments, run. BASE holds what differs from a conversion, below the configuration file.
# What it writes is a folder that inspect, generate, eval and serve take by name; it has no likelihood.
"""Subcommand `latent`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_training

HELP = "train a latent diffusion model (cola, ldlm, vfm) on a discrete one"
JOB = ("model", "optimizer", "train", "latent", "seed")
BASE = {"model": {"dtype": "float32"}, "optimizer": {"lr": 1e-3, "weight_decay": 0.01, "schedule": "wsd"}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--resume [RUN]`, `--watch`."""
    add_training(parser)


def run(context: Context) -> dict[str, Any]:
    """The report of the run."""
    from hildanext.train.recipes.latents import latent_command

    return latent_command(context.config, context.console, context.args.run_dir)
