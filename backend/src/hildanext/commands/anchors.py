# hildanext anchors: the hidden states of the AR parent over the training rows, written once for objective `align`.
# Entry points: add_arguments, run.
# Size is said first; an interrupted run goes on where it was.
"""Subcommand `anchors`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_model

HELP = "write the AR parent's hidden states over the training rows, for objective align"
JOB = ("model", "train.data", "train.split", "anchors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--out`."""
    add_model(parser)
    parser.add_argument("--out", dest="anchors.folder", metavar="FOLDER", help="where they go (default: by the shards)")


def run(context: Context) -> dict[str, Any]:
    """Folder, rows, bytes."""
    from hildanext.train.anchors import write_anchors

    return write_anchors(context.config, context.console)
