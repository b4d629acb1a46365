# hildanext trajectories: in which order the model fills its training texts, written once for objective `trajectory`.
# Entry points: add_arguments, run.
# The section decode says under which policy; an interrupted run goes on where it was.
"""Subcommand `trajectories`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_model

HELP = "write in which order the model fills its training texts, for objective trajectory"
JOB = ("model", "train.data", "train.split", "trajectories", "decode", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--out`, `--free`."""
    add_model(parser)
    parser.add_argument(
        "--out", dest="trajectories.folder", metavar="FOLDER", help="where they go (default: by the shards)"
    )
    parser.add_argument(
        "--free",
        dest="trajectories.free",
        action="store_const",
        const=True,
        help="the model's own answers, as new rows",
    )


def run(context: Context) -> dict[str, Any]:
    """Folder, rows, tokens per forward."""
    from hildanext.train.trajectories import write_trajectories

    return write_trajectories(context.config, context.console)
