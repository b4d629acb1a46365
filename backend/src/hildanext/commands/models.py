# hildanext models: the models that are here, where they came from, and whether they are converted.
# Entry points: add_arguments, run.
# Reads small files only; what a folder holds in full is `hildanext inspect`.
"""Subcommand `models`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context

HELP = "list the models that are here: origin, block, mask, size, converted or not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(context: Context) -> dict[str, Any]:
    """{"models": [row, ...], "fetchable": names that `hildanext fetch` knows}."""
    from hildanext.models.fetch import KNOWN
    from hildanext.models.listing import listing

    paths, console = context.config.paths, context.console
    rows = listing(paths)
    shown = [
        (row["name"], row["path"], "-" if row["converted"] is None else "yes" if row["converted"] else "no",
         _of(row["block"]), _of(row["mask_id"]), _size(row["bytes"]), row["kind"], row["origin"])
        for row in rows
    ]  # fmt: skip
    console.table(shown, ("name", "model.path", "converted", "block", "mask", "weights", "kind", "origin"))
    for row in (row for row in rows if row["problem"]):
        console.warn(f"{row['path']}: {row['problem']}")
    names = {row["name"] for row in rows}
    absent = [name for name in KNOWN if name not in names]
    if absent:
        console.say(f"not here yet: {', '.join(absent)} (hildanext fetch NAME); org/name of the hub works too")
    return {"models": rows, "fetchable": list(KNOWN)}


def _of(value: int | None) -> str:
    return "-" if value is None else str(value)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
