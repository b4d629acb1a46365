# The subcommands, one file each; a file here is a subcommand (underscores become dashes).
# Entry points: Context, available. A command file has HELP, add_arguments(parser) and run(context) -> dict | None.
# No decisions in a command: it reads arguments, calls a part, says what happened.
"""Protocol of the subcommands."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from hildanext.config import Config
from hildanext.progress import Console


@dataclass(frozen=True)
class Context:
    """What a command gets: parsed arguments, the resolved configuration, the console for human text."""

    args: argparse.Namespace
    config: Config
    console: Console


class Command(Protocol):
    """A module of this folder."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own flags."""

    def run(self, context: Context) -> dict[str, Any] | None:
        """Do it; the returned object is what --json prints."""


def available() -> list[str]:
    """File names of the commands that exist, in the order of the help text."""
    order = (
        "demo", "smoke_test", "prepare_data", "tokenize", "convert_wsd", "sft", "merge_checkpoints", "generate",
        "serve", "eval", "bench", "export", "inspect", "doctor", "config", "runs",
    )  # fmt: skip
    folder = Path(__file__).parent
    return [name for name in order if (folder / f"{name}.py").exists()]


def load(name: str) -> ModuleType:
    """The module of one command."""
    from importlib import import_module

    return import_module(f"hildanext.commands.{name}")
