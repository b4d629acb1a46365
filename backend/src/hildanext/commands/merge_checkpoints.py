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
from hildanext.errors import ConfigError

HELP = "average a run's best checkpoints, or the members named"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, `--best K`, `--members NAME ...`, `--output DIR`."""
    parser.add_argument(
        "run", type=Path, nargs="?", metavar="RUN", help="run directory (runs/<id>; default: the one of model.path)"
    )
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

    args, directory = context.args, context.args.run or _run_of(context.config.model.path)
    own = directory / "config.json"
    config = context.config if args.config or not own.exists() else load_config(own, args.set)
    return merge_run(config, context.console, directory, args.members, args.best, args.output)


def _run_of(model: str) -> Path:
    folder = Path(model).parent
    if not (folder / "checkpoints").is_dir():
        raise ConfigError(f"RUN: none is named, and model.path {model!r} lies in no run; give RUN, or RUN/model there")
    return folder
