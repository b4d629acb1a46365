# hildanext init: a commented configuration for a goal, a model and a machine, after three questions or by flags.
# Entry points: add_arguments, run.
# What is written is checked as the command that reads it would; nothing is overwritten without --force.
"""Subcommand `init`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hildanext.commands import Context, source
from hildanext.config.start import GOALS, MACHINES

HELP = "write a commented configuration for a goal and a machine, after three questions or by flags"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """GOAL, `--model`, `--machine`, `--data`, `--out`, `--force`."""
    parser.add_argument("goal", nargs="?", choices=tuple(GOALS), help="what it is for; asked where it is left out")
    parser.add_argument("--model", metavar="FOLDER", help="model folder; asked where it is left out")
    parser.add_argument("--machine", choices=tuple(MACHINES), help="where it runs; asked where it is left out")
    parser.add_argument(
        "--data", action="append", type=source, default=[], metavar="FILE[=WEIGHT]",
        help="file or folder of documents, with its weight in the mixture; repeatable (default: the built-in world)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: GOAL.json)")
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def run(context: Context) -> dict[str, Any]:
    """{"file", "command": the line that uses it, "goal", "machine"}."""
    from hildanext.config.for_command import command_config
    from hildanext.config.start import Plan, choices, commented
    from hildanext.disk import write_atomic
    from hildanext.errors import ConfigError
    from hildanext.registry import plugin_problems

    args, console = context.args, context.console
    goal = args.goal or _asked(
        "What for?", {name: f"hildanext {command}" for name, command in GOALS.items()}, "convert"
    )
    usual = "tiny-parent" if goal == "convert" else "tiny"
    model = args.model or _asked("Which model folder?", {}, usual)
    machine = args.machine or _asked("On what machine?", MACHINES, _here())
    file = args.out or Path(f"{goal}.json")
    if file.exists() and not args.force:
        raise ConfigError(f"init: {file} is there already; name another with --out, or say --force")

    sources = tuple(args.data)
    name = Path(str(sources[0]["path"])).stem if sources else ""
    plan = Plan(goal, machine, model, sources, name, model in ("tiny", "tiny-parent"))
    text = commented(choices(plan), f"{goal} of {model} on {MACHINES[machine]}, written by hildanext init")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text)
    command_config(GOALS[goal], file, (), plugin_problems)
    line = f"hildanext {GOALS[goal]} --config {file}"
    console.say(f"{file}: written; keys that begin with // are comments. Next:\n  {line}")
    if goal in ("convert", "sft"):
        console.say(f"  {line} --print-plan    # stages, memory and steps, before anything is trained")
    return {"file": str(file), "command": line, "goal": goal, "machine": machine}


def _asked(question: str, known: Mapping[str, str], usual: str) -> str:
    from hildanext.errors import ConfigError

    if not sys.stdin.isatty():
        raise ConfigError("init: nobody is there to ask; give GOAL, --model and --machine")
    print(question, file=sys.stderr)
    for name, about in known.items():
        print(f"  {name:9} {about}", file=sys.stderr)
    while True:
        print(f"[{usual}] ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline().strip() or usual
        if not known or answer in known:
            return answer
        print(f"one of {', '.join(known)}", file=sys.stderr)


def _here() -> str:
    import torch

    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
    if not sizes:
        return "cpu"
    return "multigpu" if len(sizes) > 1 else "gpu" if sizes[0] > 20e9 else "gpu8"
