# Draws the comparison in docs/latents.md: measures of the task `forwards` against steps, a line for each model.
# Entry points: `python docs/latents.py PICTURE.png NAME=runs/<eval run> ...`; the table is printed.
# Every number is read from the reports; nothing is computed here.
"""Table and picture of latent and discrete models by number of steps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hildanext.cli import spoken
from hildanext.errors import DataError, RunError
from hildanext.measure.comparison import read_report
from hildanext.report.plots import picture

COLUMNS = {
    "valid": ("valid, %", 100.0), "nll": ("NLL under the parent", 1.0), "3_gram_kl": ("3-gram KL", 1.0),
    "repetition": ("self-repetition, %", 100.0), "distinct_2": ("distinct-2, %", 100.0),
}  # fmt: skip
COSTS = {"forwards_per_text": ("forwards per text", 1.0), "tokens_per_second": ("tokens/s", 1.0)}
COLOURS = ("#2a63d4", "#c2571a", "#15806b", "#7a3fb0", "#8a8a2a", "#444444")
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def rows_of(named: Sequence[str]) -> tuple[Rows, Mapping[str, float]]:
    """({name: points of its report}, the measures of the true texts, from the first report)."""
    found: dict[str, Sequence[Mapping[str, Any]]] = {}
    true: dict[str, float] = {}
    for one in named:
        name, _, place = one.partition("=")
        task = next((task for task in read_report(Path(place))["tasks"] if task["task"] == "forwards"), None)
        if not place or task is None:
            raise DataError(f"{one}: no evaluation with the task `forwards`; give NAME=RUN")
        found[name] = task["series"]["steps"]
        true = true or {
            label.removesuffix(" of_references"): measure["value"]
            for label, measure in task["measures"].items()
            if label.endswith(" of_references")
        }
    return found, true


def table(rows: Rows, true: Mapping[str, float]) -> str:
    """A Markdown table: a row for each model and number of steps, the true texts first."""
    columns = {**COLUMNS, **COSTS}
    heads = ["model", "steps", *(title for title, _ in columns.values())]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), _line("true texts", "", true, columns)]
    for name, points in rows.items():
        lines += [_line(name, str(point["steps"] or "-"), point, columns) for point in points]
    return "\n".join(lines)


def _line(name: str, steps: str, values: Mapping[str, Any], columns: Mapping[str, tuple[str, float]]) -> str:
    cells = [f"{factor * values[key]:.4g}" if key in values else "-" for key, (_, factor) in columns.items()]
    return "| " + " | ".join([name, steps, *cells]) + " |"


def draw(rows: Rows, true: Mapping[str, float], figure: Any) -> None:
    """The first four measures against forwards per text, true texts as dotted lines."""
    for axes, (key, (title, factor)) in zip(figure.subplots(2, 2).flat, COLUMNS.items(), strict=False):
        for colour, (name, points) in zip(COLOURS, rows.items(), strict=False):
            known = [point for point in points if key in point]
            x = [point["forwards_per_text"] for point in known]
            axes.plot(x, [factor * point[key] for point in known], marker="o", color=colour, label=name)
        if key in true:
            axes.axhline(factor * true[key], color="#999999", linestyle=":", label="true texts")
        axes.set(xscale="log", xlabel="forwards per text", ylabel=title)
        axes.grid(alpha=0.25)
    figure.axes[0].legend(frameon=False, fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="evaluations with the task `forwards`")
    asked = parser.parse_args(arguments)
    known, references = rows_of(asked.runs)
    print(table(known, references))
    if reason := picture(asked.picture, lambda figure: draw(known, references, figure), (9, 6.4), 120):
        raise RunError(reason)


if __name__ == "__main__":
    sys.exit(spoken("latents.py", main))
