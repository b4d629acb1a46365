# hildanext tokenize: a prepared set -> packed, memory-mapped rows.
# Entry points: add_arguments, run.
# Chats and plain documents go to rows of their own.
"""Subcommand `tokenize`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_executor

HELP = "turn a prepared set into packed rows of token ids"
JOB = ("tokenize", "data.name", "data.executor", "model.path")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--executor NAME`."""
    add_executor(parser)


def run(context: Context) -> dict[str, Any]:
    """The manifest of the rows."""
    from hildanext.data.tokenize import tokenize
    from hildanext.models.load import located

    return tokenize(located(context.config), context.console)
