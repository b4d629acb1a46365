# hildanext merge-checkpoints: the mean of a run's best or newest checkpoints, evaluated beside its members.
# Entry points: add_arguments, run.
# Without --config the run's own configuration is used.
"""Subcommand `merge-checkpoints`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context
from hildanext.config import load_config
from hildanext.errors import ConfigError

HELP = "average a run's best checkpoints, or the newest, or the members named; adapters become a model"
JOB = ("merge", "model.path", "train.eval_split", "train.eval_rows", "train.eval_samples", "train.data", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, `--best K`, `--last K`, `--members NAME ...`, `--output DIR`."""
    parser.add_argument(
        "merge.run", nargs="?", metavar="RUN", help="run directory (runs/<id>; default: the one of model.path)"
    )
    parser.add_argument(
        "--best", dest="merge.best", type=int, metavar="K", help="how many of lowest evaluation NLL (default 3)"
    )
    parser.add_argument("--last", dest="merge.last", type=int, metavar="K", help="how many of the newest, not the best")
    parser.add_argument(
        "--members", dest="merge.members", nargs="+", metavar="NAME",
        help="checkpoints by name or model folders, not the best",
    )  # fmt: skip
    parser.add_argument("--output", dest="merge.output", metavar="DIR", help="folder to write (default RUN/merged)")


def run(context: Context) -> dict[str, Any]:
    """The merged folder and every NLL."""
    from hildanext.train.merge import Choice, merge_run

    args, merge = context.args, context.config.merge
    directory = Path(merge.run) if merge.run else _run_of(context.config.model.path)
    own = directory / "config.json"
    config = context.config if args.config or not own.exists() else load_config(own, args.set)
    output = Path(merge.output) if merge.output else None
    choice = Choice(merge.members, merge.best, merge.last)
    return merge_run(config, context.console, directory, choice, output)


def _run_of(model: str) -> Path:
    folder = Path(model).parent
    if not (folder / "checkpoints").is_dir():
        raise ConfigError(
            f"merge.run: none is named, and model.path {model!r} lies in no run; give the run or its model"
        )
    return folder
