# Draws the figures of docs/why.md from docs/why.json, whose numbers stand in docs/results.md.
# Entry points: `python docs/why.py`; figures(), missing(entry, results).
# why.json names the section and the table row of every number, so that a figure cannot say what no table says:
# test/docs/test_why.py looks each of them up.
"""Figures of docs/why.md."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hildanext.report.plots import picture

DOCS = Path(__file__).parent
COLOURS = ("#2a63d4", "#c2571a", "#15806b", "#7a3fb0", "#8a6d1a")


def figures(docs: Path = DOCS) -> list[dict[str, Any]]:
    """The entries of why.json."""
    found: list[dict[str, Any]] = json.loads((docs / "why.json").read_text(encoding="utf-8"))["figures"]
    return found


def section(results: str, title: str) -> str:
    """The text below a heading of docs/results.md, up to the next of its level or above; '' where there is none."""
    found = re.search(rf"^(#+) {re.escape(title)}$", results, re.M)
    if not found:
        return ""
    level, rest = len(found[1]), results[found.end() :]
    stop = re.search(rf"^#{{1,{level}}} ", rest, re.M)
    return rest[: stop.start()] if stop else rest


def missing(entry: Mapping[str, Any], results: str) -> list[str]:
    """What a figure says and no row of its section does: numbers and rows by name."""
    text, faults = section(results, entry["section"]), list[str]()
    for point in _points(entry):
        wanted = (point["row"], point.get("header", point["row"]))
        lines = [line for line in text.splitlines() if line.startswith(wanted)]
        said = [str(point[name]) for name in ("x", "y", "low", "high") if isinstance(point.get(name), str)]
        if not lines:
            faults.append(f"{entry['file']}: {entry['section']} has no row {point['row']!r}")
        else:
            faults += [f"{entry['file']}: {point['row']!r} does not say {one}" for one in said if not _in(one, lines)]
    return faults


def _in(number: str, lines: Sequence[str]) -> bool:
    return any(re.search(rf"(?<![\d.]){re.escape(number)}(?!\.?\d)", line) for line in lines)


def _points(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for series in entry["series"]:
        yield from series["points"]


def draw(entry: Mapping[str, Any], figure: Any) -> None:
    """Points with intervals against a number, or bars of named things."""
    axes = figure.subplots()
    if entry["kind"] == "bars":
        _bars(entry, axes)
    else:
        _scattered(entry, axes)
    axes.grid(alpha=0.25, axis="x" if entry["kind"] == "bars" else "both")


def _bars(entry: Mapping[str, Any], axes: Any) -> None:
    names, values, colours = list[str](), list[float](), list[str]()
    for number, series in enumerate(entry["series"]):
        for point in series["points"]:
            names.append(point["label"])
            values.append(float(point["x"]))
            colours.append(COLOURS[number])
    places = range(len(names), 0, -1)
    axes.barh(places, values, color=colours)
    axes.set(yticks=list(places), yticklabels=names, xlabel=entry["x"], xlim=(0, 1.18 * max(values)))
    for place, value in zip(places, values, strict=True):
        axes.annotate(f"{value:g}", (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    handles = [axes.barh([0], [0], color=COLOURS[number]) for number in range(len(entry["series"]))]
    axes.legend(handles, [one["name"] for one in entry["series"]], frameon=False, loc=entry.get("legend", "best"))
    axes.set_ylim(0.4, len(names) + 0.6)


def _scattered(entry: Mapping[str, Any], axes: Any) -> None:
    for number, series in enumerate(entry["series"]):
        points = series["points"]
        x, y = [float(one["x"]) for one in points], [float(one["y"]) for one in points]
        sides = [
            [abs(float(one.get(side, one["y"])) - value) for one, value in zip(points, y, strict=True)]
            for side in ("low", "high")
        ]
        axes.errorbar(
            x, y, yerr=sides, marker="o", capsize=3, color=COLOURS[number], label=series["name"],
            linestyle="-" if series.get("joined") else "none",
        )  # fmt: skip
        for one, across, up in zip(points, x, y, strict=True):
            place = tuple(one.get("place", (5, 5)))
            axes.annotate(one["label"], (across, up), xytext=place, textcoords="offset points", fontsize=8.5)
    axes.set(xlabel=entry["x"], ylabel=entry["y"], **entry.get("limits", {}))
    axes.legend(frameon=False, loc="best")


if __name__ == "__main__":
    for one in figures():
        reason = picture(DOCS / "images" / one["file"], lambda figure, one=one: draw(one, figure), (7.6, 4.2), 130)
        if reason:
            sys.exit(reason)
