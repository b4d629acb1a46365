# What the files of commands/ say about themselves, read from their text: no command is imported for it.
# Entry points: CommandFile, command_files, job_kinds.
# HELP = "one line"; BASE, ADAPTED = {section: values} below the configuration file, for all and where adapters train;
# JOB = ("section" or "section.field", ...): the command may run as a job, and reads these values.
"""The commands, before one of them is imported."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

SAID = ("HELP", "JOB", "BASE", "ADAPTED")
FOLDER = Path(__file__).with_name("commands")
ORDER = (
    "demo", "smoke-test", "models", "fetch", "init", "convert", "chat", "compare", "prepare-data", "answer", "tokenize",
    "anchors", "convert-wsd", "trajectories", "sft", "on-policy", "rl", "dpo", "latent", "merge-checkpoints",
    "generate", "serve", "eval", "bench", "tune", "export", "inspect", "doctor", "config", "runs", "completion",
)  # fmt: skip
"""Order of the help text; what is not named here comes after, by name."""


@dataclass(frozen=True)
class CommandFile:
    """One command. job: the places of the configuration it reads, where it may run as a job; empty: it may not. base:
    its own defaults; adapted: further ones where adapters are trained instead of the weights; plan: it can print a
    plan (--print-plan)."""

    name: str
    help: str
    job: tuple[str, ...] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    adapted: Mapping[str, Any] = field(default_factory=dict)
    plan: bool = False


@cache
def command_files(folder: Path = FOLDER) -> dict[str, CommandFile]:
    """Every command by its name on the command line, in the order of the help text."""
    found = [_read(path) for path in folder.glob("*.py") if not path.stem.startswith("_")]
    return {file.name: file for file in sorted(found, key=_place)}


def job_kinds(folder: Path = FOLDER) -> dict[str, CommandFile]:
    """The commands that may run as a job, by name."""
    return {name: file for name, file in command_files(folder).items() if file.job}


def _read(path: Path) -> CommandFile:
    said: dict[str, Any] = {}
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and isinstance(node, ast.Assign) and target.id in SAID:
            said[target.id] = ast.literal_eval(node.value)
    name, job = path.stem.replace("_", "-"), tuple(said.get("JOB", ()))
    base, adapted = said.get("BASE", {}), said.get("ADAPTED", {})
    return CommandFile(name, str(said.get("HELP", "")), job, base, adapted, '"--print-plan"' in text)


def _place(file: CommandFile) -> tuple[int, str]:
    return (ORDER.index(file.name) if file.name in ORDER else len(ORDER), file.name)
