# hildanext smoke-test: load, data, one conversion step, one SFT step, every mode, a server, a named fallback.
# Entry points: add_arguments, run.
# Exit code 0 with OK and a table, 1 with the name of the stage that failed.
"""Subcommand `smoke-test`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_model

HELP = "try every part once on this machine, in under a minute"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, by default the bundled one."""
    add_model(parser)


def run(context: Context) -> dict[str, Any]:
    """The table of stages."""
    from hildanext.selftest.smoke import smoke_test

    return smoke_test(context.config, context.console, context.args.run_dir)
