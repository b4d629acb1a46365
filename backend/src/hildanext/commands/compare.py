# hildanext compare: a child beside its parent on the same texts; a table, one sentence and a page.
# Entry points: add_arguments, run.
# Tasks of `eval` are added by name; how both decode stands in the section decode of the configuration. Without names,
# and with a configuration that has grid.cells, trainings are compared instead, each at the same budget.
"""Subcommand `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context, plugin
from hildanext.errors import ConfigError

HELP = "a child beside its parent: likelihood, answers, speed on one clock, and a verdict"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PARENT, CHILD, `--data`, `--limit`, `--show`, `--task`."""
    parser.add_argument(
        "parent", nargs="?", metavar="PARENT", help="folder of the AR model; none: the grid of --config"
    )
    parser.add_argument("child", nargs="?", metavar="CHILD", help="folder of the converted model, or its run")
    parser.add_argument("--data", type=Path, metavar="FILE", help="texts or chats (default: what the run held out)")
    parser.add_argument("--limit", type=int, default=32, metavar="N", help="texts at most (default 32)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="tell N answers of both side by side")
    parser.add_argument(
        "--task", dest="eval.tasks", action="append", type=plugin, metavar="NAME", help="also this task of `eval`"
    )


def run(context: Context) -> dict[str, Any]:
    """The report, with its table and verdict."""
    if context.args.child is None:
        return _grid(context)
    from hildanext.measure.pair import compare_pair
    from hildanext.measure.pair_report import answers_told

    args = context.args
    names = (args.parent, args.child)
    report = compare_pair(context.config, names, args.data, args.limit, context.console, args.run_dir)
    answers_told(report, context.console, args.show)
    return report


def _grid(context: Context) -> dict[str, Any]:
    from hildanext.bench.grid.running import run_grid

    if not context.config.grid.cells or context.args.parent is not None:
        raise ConfigError("compare: name PARENT and CHILD, or give --config with grid.cells")
    return run_grid(context.config, context.console, context.args.run_dir)
