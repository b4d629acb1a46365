# hildanext merge-checkpoints: the mean of a run's best checkpoints, evaluated beside its members.
# Entry points: add_arguments, run.
# Without --config the run's own configuration is used.
"""Subcommand `merge-checkpoints`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context
from hildanext.config import load_config

HELP = "average a run's best checkpoints, or the members named"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, `--best K`, `--members NAME ...`, `--output DIR`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory (runs/<id>)")
    parser.add_argument(
        "--best", type=int, default=3, metavar="K", help="how many of lowest evaluation NLL (default 3)"
    )
    parser.add_argument(
        "--members", nargs="+", default=[], metavar="NAME", help="checkpoints by name or model folders, not the best"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (default RUN/merged)")


def run(context: Context) -> dict[str, Any]:
    """The merged folder and every NLL."""
    from hildanext.train.merge import merge_run

    args, own = context.args, context.args.run / "config.json"
    config = context.config if args.config or not own.exists() else load_config(own, args.set)
    return merge_run(config, context.console, args.run, args.members, args.best, args.output)
