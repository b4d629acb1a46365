# hildanext key-scores: what the compressor kvzap reads: how much attention each key will ever get, fitted per layer.
# Entry points: add_arguments, run.
# One pass over the rows and a linear fit: no gradient, no steps; the model itself does not change.
"""Subcommand `key-scores`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_model

HELP = "fit the key scores that compressor kvzap reads, on the model's own attention"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--out`, `--rows`."""
    add_model(parser)
    parser.add_argument("--out", dest="key_scores.file", metavar="FILE", help="where they go (default: by the model)")
    parser.add_argument(
        "--rows", dest="key_scores.rows", type=int, metavar="N", help="rows of the shards that are read"
    )


def run(context: Context) -> dict[str, Any]:
    """File, rows, and per layer how much of the held-out scores is explained."""
    from hildanext.train.key_scores import write_key_scores

    return write_key_scores(context.config, context.console)
