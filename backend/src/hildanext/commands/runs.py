# hildanext runs: the run directories with state, step, loss and age; one with its curves, several side by side.
# Entry points: add_arguments, run.
# Reads status.json, config.json and metrics.jsonl only.
"""Subcommand `runs`."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from hildanext.commands import Context
from hildanext.run_dir import list_runs

HELP = "list runs with state, step, loss and age; show one with its curves, or compare several"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[list | show RUN | compare RUN RUN ...], `--last N`, `--html FILE`."""
    parser.add_argument("what", nargs="?", choices=("list", "show", "compare"), default="list", help="default: list")
    parser.add_argument("names", nargs="*", metavar="RUN", help="runs by id or path; show without one takes the newest")
    parser.add_argument("--last", type=int, default=20, metavar="N", help="list: show the N newest (default 20)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="show, compare: also write a page with the curves")


def run(context: Context) -> dict[str, Any]:
    """{"runs": [status, ...]}, newest first; of show and compare what their table says, with the curves."""
    return _list(context) if context.args.what == "list" else _curves(context)


def _list(context: Context) -> dict[str, Any]:
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


def _curves(context: Context) -> dict[str, Any]:
    from hildanext.disk import write_atomic
    from hildanext.report.curves import Run, compared, curves_page, plot, smoothed, told

    console, html = context.console, context.args.html
    found = [Run.of(path) for path in _paths(context)]
    width = max(40, min(160, shutil.get_terminal_size().columns - 12))
    if context.args.what == "show":
        for one in found:
            console.say(told(one, width))
    else:
        for title, curves in (("loss", [smoothed(one.loss) for one in found]),
                              ("evaluation, nats per token", [one.evaluation for one in found])):  # fmt: skip
            if drawn := plot({one.name: curve for one, curve in zip(found, curves, strict=True)}, width):
                console.say(f"{title}\n{drawn}")
        console.table(*compared(found))
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(html, curves_page(found))
        console.say(f"{html}: written")
    return {
        "runs": [
            {"id": one.name, **one.facts(), "loss_curve": list(one.loss), "evaluation_curve": list(one.evaluation)}
            for one in found
        ]
    }


def _paths(context: Context) -> list[Path]:
    from hildanext.errors import HildaError

    root, names = Path(context.config.paths.runs), context.args.names
    if not names and context.args.what == "show":
        newest = list_runs(root)[:1]
        if not newest:
            raise HildaError(f"runs show: no runs in {root}/ yet; name one")
        names = [newest[0]["id"]]
    if len(names) < 2 and context.args.what == "compare":
        raise HildaError("runs compare: name two runs or more; `hildanext runs` lists them")
    return [path if (path := Path(name)).is_dir() else root / name for name in names]


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
