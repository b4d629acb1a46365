# hildanext prepare-data: sources -> cleaned, split JSON lines.
# Entry points: add_arguments, run.
# Without a configuration it makes the story world, which needs no files and no network.
"""Subcommand `prepare-data`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_executor, source

HELP = "read, clean, deduplicate, mix and split documents"
JOB = ("data",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--data FILE[=WEIGHT]`, `--name NAME`, `--executor NAME`."""
    parser.add_argument(
        "--data", dest="data.sources", action="append", type=source, metavar="FILE[=WEIGHT]",
        help="file or folder of documents, with its share in the mixture; repeatable",
    )  # fmt: skip
    parser.add_argument("--name", dest="data.name", metavar="NAME", help="name of the set")
    add_executor(parser)


def run(context: Context) -> dict[str, Any]:
    """The manifest of the prepared set."""
    from hildanext.data.prepare import prepare

    return prepare(context.config, context.console)
