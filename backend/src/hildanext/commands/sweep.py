# hildanext sweep: quality and throughput of a model against the steps it decodes with.
# Entry points: add_arguments, run.
# Prompts, steps and the parent that judges are the section sweep.
"""Subcommand `sweep`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_model

HELP = "quality and speed of a model against the steps of its decoding"
JOB = ("model", "decode", "sweep")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`."""
    add_model(parser)


def run(context: Context) -> dict[str, Any]:
    """A row for each number of steps."""
    from hildanext.bench.sweep import sweep

    return sweep(context.config, context.console, context.args.run_dir)
