# hildanext tune: find the fastest decode setting of a model on this machine whose texts are as good, and keep it.
# Entry points: add_arguments, run.
# What is tried, how long, and the tolerance are the section tune.
"""Subcommand `tune`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_model

HELP = "find the fastest decode setting of a model on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the time, and whether the winner is kept."""
    add_model(parser)
    parser.add_argument(
        "--seconds", dest="tune.seconds", type=float, metavar="N", help="time for trying settings (default 90)"
    )
    parser.add_argument(
        "--write", dest="tune.write", action="store_const", const=True,
        help="write the winner into the model folder's hildanext.json; generate, chat and serve then use it here",
    )  # fmt: skip


def run(context: Context) -> dict[str, Any]:
    """The search's report."""
    from hildanext.bench.tuning.search import tune

    return tune(context.config, context.console, getattr(context.args, "run_dir", None))
