# hildanext doctor: what this installation can do, and the line that would change what it cannot.
# Entry points: add_arguments, run.
# Loads torch, and the configured model once per engine that can serve it.
"""Subcommand `doctor`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context

HELP = "report versions, devices, dtype, attention, engines and missing extras, with reasons"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No flags of its own."""


def run(context: Context) -> dict[str, Any]:
    """The report of selftest/doctor.py."""
    from hildanext.selftest.doctor import diagnose, lines

    report = diagnose(context.config)
    context.console.table(lines(report))
    return report
