# hildanext compare: a child beside its parent on the same texts; a table, one sentence and a page.
# Entry points: add_arguments, run.
# Tasks of `eval` are added by name; how both decode stands in the section decode of the configuration.
"""Subcommand `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context, plugin

HELP = "a child beside its parent: likelihood, answers, speed on one clock, and a verdict"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PARENT, CHILD, `--data`, `--limit`, `--show`, `--task`."""
    parser.add_argument("parent", metavar="PARENT", help="folder of the AR model")
    parser.add_argument("child", metavar="CHILD", help="folder of the converted model, or its run")
    parser.add_argument("--data", type=Path, metavar="FILE", help="texts or chats (default: what the run held out)")
    parser.add_argument("--limit", type=int, default=32, metavar="N", help="texts at most (default 32)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="tell N answers of both side by side")
    parser.add_argument(
        "--task", dest="eval.tasks", action="append", type=plugin, metavar="NAME", help="also this task of `eval`"
    )


def run(context: Context) -> dict[str, Any]:
    """The report, with its table and verdict."""
    from hildanext.measure.pair import compare_pair
    from hildanext.measure.pair_report import answers_told

    args = context.args
    names = (args.parent, args.child)
    report = compare_pair(context.config, names, args.data, args.limit, context.console, args.run_dir)
    answers_told(report, context.console, args.show)
    return report
