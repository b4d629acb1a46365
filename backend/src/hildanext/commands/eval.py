# hildanext eval: measure a model by the tasks of the configuration; report.json, report.md and plots in the run.
# Entry points: add_arguments, run.
# Task settings are configuration: --set 'eval.tasks=[{"type": "gsm8k", "path": "gsm8k/test.jsonl"}]'.
"""Subcommand `eval`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context
from hildanext.config.eval import TaskSection
from hildanext.registry import names

HELP = "measure a model: likelihood, story validity, code, arithmetic, quality against speed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, tasks by name with their defaults, and runs to stand beside this one."""
    parser.add_argument("--model", metavar="FOLDER", help="model folder (default: model.path of the configuration)")
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME",
        help=f"task with its defaults: {', '.join(names('tasks'))}",
    )
    parser.add_argument(
        "--against", action="append", default=[], type=Path, metavar="RUN", help="earlier eval run to compare with"
    )


def run(context: Context) -> dict[str, Any]:
    """The report."""
    from hildanext.measure.runner import evaluate

    args, config = context.args, context.config
    if args.model:
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": args.model})})
    if args.task:
        tasks = tuple(TaskSection(type=name) for name in args.task)
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"tasks": tasks})})
    return evaluate(config, context.console, args.against, args.run_dir)
