# Draws README's frontier plot from a demo's report: valid stories against tokens per forward.
# Entry points: `python docs/frontier.py runs/<demo run>/report.json docs/images/frontier.png`.
# Every point and interval is read from the report; nothing is computed here.
"""Frontier plot."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hildanext.cli import spoken
from hildanext.errors import DataError, RunError
from hildanext.report.plots import picture

LOOKS = {
    "parent": ("#2a63d4", "AR parent", "none"),
    "child, modes": ("#7a3fb0", "diffusion child in its modes", "none"),
    "child, editing": ("#c2571a", "S_MODE at other tau_mask", "-"),
    "child, no editing": ("#15806b", "the same without editing", "-"),
}


def draw(points: dict[str, list[dict[str, Any]]], figure: Any) -> None:
    """Draw {name: [{x, y, low, high, label}]} on a figure."""
    axes = figure.subplots()
    for name, series in points.items():
        colour, label, joined = LOOKS[name]
        y = [100 * point["y"] for point in series]
        errors = [
            [100 * (point["y"] - point["low"]) for point in series],
            [100 * (point["high"] - point["y"]) for point in series],
        ]
        axes.errorbar(
            [point["x"] for point in series], y, yerr=[[max(0.0, e) for e in side] for side in errors], marker="o",
            capsize=3, color=colour, label=label, linestyle=joined, zorder=4 if joined == "none" else 3,
        )  # fmt: skip
        for point in series if name != "child, editing" else series[:1]:
            text, place = str(point["label"]), (point["x"], 100 * point["y"])
            offset, turn = _place(name, point)
            axes.annotate(text, place, xytext=offset, textcoords="offset points", fontsize=9, rotation=turn)
    axes.set(xlabel="tokens per forward", ylabel="valid stories, %", ylim=(0, 122), yticks=range(0, 101, 20))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower left")


def _place(name: str, point: dict[str, Any]) -> tuple[tuple[int, int], int]:
    if name == "child, modes":
        return ((-100, -14), 0) if "sampled" in point["label"] else ((2, 6), 30)
    return ((8, -4), 0) if point["y"] <= 0.5 or point["x"] <= 1 else ((-24, -14), 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="report.json of a demo")
    parser.add_argument("picture", type=Path, help="PNG to write")
    asked = parser.parse_args(arguments)
    try:
        points = json.loads(asked.report.read_text(encoding="utf-8"))["parts"]["frontier"]["points"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{asked.report}: no report of `hildanext demo` ({type(error).__name__})") from error
    if reason := picture(asked.picture, lambda figure: draw(points, figure), (7.6, 4.2), 130):
        raise RunError(reason)


if __name__ == "__main__":
    sys.exit(spoken("frontier.py", main))
