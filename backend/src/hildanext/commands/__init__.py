# The subcommands, one file each; a file here is a subcommand (underscores become dashes).
# Entry points: Context, load. A command file has HELP, add_arguments(parser) and run(context) -> dict | None.
# A flag whose destination has a dot is a configuration value: dest="model.path". With JOB it may also run over HTTP.
# No decisions in a command: it reads its values, calls a part, says what happened.
"""Protocol of the subcommands."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
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
        """Declare the command's own flags; what may run as a job has only those that are configuration values."""

    def run(self, context: Context) -> dict[str, Any] | None:
        """Do it; the returned object is what --json prints."""


def load(name: str) -> ModuleType:
    """The module of one command, by its name on the command line."""
    from importlib import import_module

    return import_module(f"hildanext.commands.{name.replace('-', '_')}")


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model FOLDER`, which is model.path."""
    parser.add_argument(
        "--model", dest="model.path", metavar="FOLDER", help="model folder (default: model.path of the configuration)"
    )


def plugin(name: str) -> dict[str, str]:
    """The section of a plugin with its defaults, for a flag that takes its name."""
    return {"type": name}
