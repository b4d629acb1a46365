# hildanext eval: measure a model by the tasks of the configuration; report.json, report.md and plots in the run.
# Entry points: add_arguments, run.
# Task settings are configuration: --set 'eval.tasks=[{"type": "gsm8k", "path": "gsm8k/test.jsonl"}]'.
"""Subcommand `eval`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context, add_model, plugin
from hildanext.registry import names

HELP = "measure a model: likelihood, story validity, code, arithmetic, quality against speed"
JOB = ("model.path", "eval", "decode", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, tasks by name with their defaults, and runs to stand beside this one."""
    add_model(parser)
    parser.add_argument(
        "--task",
        dest="eval.tasks",
        action="append",
        type=plugin,
        metavar="NAME",
        help=f"task with its defaults: {', '.join(names('tasks'))}",
    )
    parser.add_argument(
        "--against", dest="eval.against", action="append", metavar="RUN", help="earlier eval run to compare with"
    )


def run(context: Context) -> dict[str, Any]:
    """The report."""
    from hildanext.measure.runner import evaluate

    config = context.config
    against = [Path(run) for run in config.eval.against]
    return evaluate(config, context.console, against, context.args.run_dir)
