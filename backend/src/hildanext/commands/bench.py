# hildanext bench: time one part on this machine; each part brings its own measurement.
# Entry points: add_arguments, run, parts.
# A part is a file bench/<part>.py with run(config, console, args) -> report; its settings are the section bench.
"""Subcommand `bench`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context
from hildanext.config.nearest import nearest
from hildanext.errors import ConfigError

HELP = "time data, objective, train, decode, one forward, shared prefixes or a GPU on this machine"
JOB = ("bench", "model", "decode")
FOLDER = Path(__file__).parent.parent / "bench"


def parts() -> list[str]:
    """Names of the measurements that exist."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The part."""
    parser.add_argument(
        "bench.part", nargs="?", choices=parts(), metavar="part", help=f"what is timed: {', '.join(parts())}"
    )


def run(context: Context) -> dict[str, Any]:
    """The part's report."""
    from importlib import import_module

    part = context.config.bench.part
    if part not in parts():
        raise ConfigError(f"bench.part: no part {part!r}, {nearest(part, parts(), listed=True)}")
    found: dict[str, Any] = import_module(f"hildanext.bench.{part}").run(context.config, context.console, context.args)
    return found
