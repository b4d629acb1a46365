# hildanext convert: one line from an AR model and a file of text to a block-diffusion model on this machine.
# Entry points: add_arguments, run.
# What was chosen, and why, stands in convert.json and why.json of the run; a second start goes on.
"""Subcommand `convert`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, source

HELP = "convert a model on your data in a given time: inspects, chooses, prepares, trains, measures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PATH, `--data FILE[=WEIGHT]`, `--budget SPAN`."""
    parser.add_argument("model.path", metavar="PATH", help="Hugging Face folder, GGUF file or run")
    parser.add_argument(
        "--data", type=source, action="append", required=True, metavar="FILE[=WEIGHT]",
        help="file or folder of texts or chats (JSONL, CSV, .txt, ...), with its share in the mixture; repeatable",
    )  # fmt: skip
    parser.add_argument("--budget", default="30m", metavar="SPAN", help="time it may take, as 30m, 2h or 1h30m")


def run(context: Context) -> dict[str, Any]:
    """The report of the run, with the place of its configuration."""
    from hildanext.train.choice import seconds_of
    from hildanext.train.convert import convert

    args = context.args
    seconds = seconds_of(args.budget)
    return convert(context.config, args.data, seconds, args.run_dir, context.console)
