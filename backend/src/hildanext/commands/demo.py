# hildanext demo: proof in minutes on this machine; report.json and a self-contained report.html in the run directory.
# Entry points: add_arguments, run.
# Needs no data and no weights but the bundled pair; parts without it are named and left out.
"""Subcommand `demo`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context

HELP = "toy proof, a real conversion, likelihood, speed, repair: measured here in a few minutes, with a page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, and whether a browser opens."""
    parser.add_argument("--quick", action="store_true", help="every part once, too short to prove anything")
    parser.add_argument("--open", action="store_true", help="open the page in a browser at the end")


def run(context: Context) -> dict[str, Any]:
    """The report, with the path of the page."""
    from hildanext.selftest.demo.run import demo

    done = demo(context.config, context.console, context.args.run_dir, context.args.quick)
    if context.args.open:
        import webbrowser

        webbrowser.open(done.page.resolve().as_uri())
    return done.report
