# hildanext runs: the run directories with state, step, loss and age.
# Entry points: add_arguments, run.
# Reads status.json files only.
"""Subcommand `runs`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from hildanext.commands import Context
from hildanext.run_dir import list_runs

HELP = "list runs with state, step, loss and age"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--last N`."""
    parser.add_argument("--last", type=int, default=20, metavar="N", help="show the N newest (default 20)")


def run(context: Context) -> dict[str, Any]:
    """{"runs": [status, ...]}, newest first."""
    runs = list_runs(Path(context.config.paths.runs))[: context.args.last]
    rows = [
        (str(r["id"]), str(r.get("state", "")), str(r.get("step", "")), _number(r.get("loss")), _age(r)) for r in runs
    ]
    for damaged in (run for run in runs if run.get("error") and "heartbeat" not in run):
        context.console.warn(f"{damaged['id']}: {damaged['error']}")
    if rows:
        context.console.table(rows, ("run", "state", "step", "loss", "age"))
    else:
        context.console.say(f"no runs in {context.config.paths.runs}/ yet; `hildanext demo` makes one")
    return {"runs": runs}


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _age(status: dict[str, Any]) -> str:
    beat = status.get("heartbeat")
    if not isinstance(beat, int | float) or not 0 < beat < 1e15:
        return ""
    seconds = max(0.0, time.time() - beat)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
