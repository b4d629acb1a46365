# The curves of runs: loss and evaluation over steps, drawn in a terminal or as a page, several on one canvas.
# Entry points: Run (of), plot, told, watched, compared, curves_page.
# A curve is smoothed by a mean over a fortieth of its points, since a step's loss depends on the masks it drew.
"""Curves of runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hildanext.errors import HildaError
from hildanext.report.charts import Axes, Series, lines
from hildanext.report.losses import read_metrics
from hildanext.report.page import Section, page
from hildanext.run_dir import read_status

MARKS = "●○◆◇■□▲△"
SHOWN_POINTS = 400
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """What is known of one run. loss, evaluation: (step, nats per token); settings: its config.json, by place."""

    name: str
    status: Mapping[str, Any]
    loss: Points
    evaluation: Points
    speed: float | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Run:
        """A run directory. HildaError where it is none."""
        status, records = read_status(path), read_metrics(path)
        loss = [(float(one["step"]), float(one["loss"])) for one in records if one.get("loss") is not None]
        scores = [
            (float(one["step"]), float(one["eval"]["eval_nll"])) for one in records if "eval_nll" in one.get("eval", {})
        ]
        speeds = sorted(one["tokens_per_second"] for one in records if one.get("tokens_per_second"))
        settings = dict(_leaves(_read(path / "config.json"), ""))
        return cls(path.name, status, loss, scores, speeds[len(speeds) // 2] if speeds else None, settings)

    def facts(self) -> dict[str, str]:
        """What a table shows of it."""
        state = f"{self.status.get('state', '')} {self.status.get('step', '')}/{self.status.get('total', '')}".strip(
            " /"
        )
        best = min(self.evaluation, key=lambda point: point[1], default=None)
        return {
            "state": state, "command": str(self.status.get("command", "")),
            "loss": f"{smoothed(self.loss)[-1][1]:.4f}" if self.loss else "-",
            "evaluation": f"{self.evaluation[-1][1]:.4f}" if self.evaluation else "-",
            "best": f"{best[1]:.4f} at {best[0]:g}" if best else "-",
            "tokens/s": f"{self.speed:,.0f}" if self.speed else "-", "time": _taken(self.status),
        }  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _leaves(value: Any, place: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(place, value)]
    return [leaf for name, inner in value.items() for leaf in _leaves(inner, f"{place}.{name}".lstrip("."))]


def _taken(status: Mapping[str, Any]) -> str:
    try:
        begun, end = (datetime.fromisoformat(str(status[name])) for name in ("started", "ended"))
    except (KeyError, ValueError):
        return "-"
    return f"{(end - begun).total_seconds():.0f} s"


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Every point's mean with those before it, over a fortieth of the curve."""
    width = max(1, len(points) // 40)
    return [
        (step, sum(value for _, value in points[max(0, index - width + 1) : index + 1]) / min(index + 1, width))
        for index, (step, _) in enumerate(points)
    ]


def plot(curves: Mapping[str, Points], width: int = 76, height: int = 14) -> str:
    """The curves on one canvas of characters, a mark each; the axes say their ranges. "" where there is no point."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    canvas = [[" "] * width for _ in range(height)]
    for index, curve in enumerate(curves.values()):
        for x, y in curve:
            column = round((x - first) / ((last - first) or 1) * (width - 1))
            row = round((high - y) / ((high - low) or 1) * (height - 1))
            canvas[row][column] = MARKS[index % len(MARKS)]
    edges = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
    rows = [f"{edges.get(number, ''):>9} │{''.join(row).rstrip()}" for number, row in enumerate(canvas)]
    names = "  ".join(f"{MARKS[index % len(MARKS)]} {name}" for index, name in enumerate(curves))
    below = f"{first:g}{f'step {last:g}':>{width - len(f'{first:g}')}}"
    return "\n".join([*rows, f"{'':9} └{'─' * width}", f"{'':11}{below}", f"{'':11}{names}"])


def told(run: Run, width: int = 76) -> str:
    """One run for a terminal: its curves and what its table row says."""
    drawn = plot({"loss": smoothed(run.loss), "evaluation NLL": run.evaluation}, width)
    said = ", ".join(f"{name} {value}" for name, value in run.facts().items() if value not in ("", "-"))
    return "\n".join(filter(None, [f"{run.name}: {said}", drawn]))


def watched(values: Mapping[str, Points]) -> str:
    """The curves of loss and evaluation while they grow, for the bar of a training."""
    found = {name: points for name, points in values.items() if name in ("loss", "evaluation")}
    width = max(40, min(160, shutil.get_terminal_size().columns - 12))
    return plot({name: smoothed(points) if name == "loss" else points for name, points in found.items()}, width)


def compared(runs: Sequence[Run]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """(rows, header) of a table with a column per run: facts, then every setting in which they differ. ValueError for
    no runs."""
    if not runs:
        raise ValueError("compared: no runs")
    facts = [run.facts() for run in runs]
    rows = [(name, *(one[name] for one in facts)) for name in facts[0]]
    places = sorted({place for run in runs for place in run.settings})
    for place in places:
        values = [run.settings.get(place, "-") for run in runs]
        if any(value != values[0] for value in values):
            rows.append((place, *(_cell(value) for value in values)))
    return rows, ("", *(run.name for run in runs))


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 40 else f"{text[:37]}..."


def curves_page(runs: Sequence[Run]) -> str:
    """The runs as one HTML file without network: loss and evaluation side by side, and the table. HildaError where no
    run has a curve."""
    axes = {"training loss": Axes("step", "loss"), "evaluation": Axes("step", "nats per token")}
    curves: dict[str, list[Points]] = {
        "training loss": [smoothed(run.loss) for run in runs], "evaluation": [run.evaluation for run in runs],
    }  # fmt: skip
    charts = [lines(_series(runs, curves[name]), axes[name]) for name in axes if any(curves[name])]
    if not charts:
        raise HildaError(f"runs: {', '.join(run.name for run in runs)}: no curve in metrics.jsonl yet; train first")
    rows, header = compared(runs)
    names = ", ".join(run.name for run in runs)
    section = Section(names, "Loss: means over a fortieth of the curve.", header, rows, charts, wide=True)
    return page("Runs", f"{len(runs)} run{'s' if len(runs) > 1 else ''} side by side", (), [section], "hildanext runs")


def _series(runs: Sequence[Run], curves: Sequence[Points]) -> list[Series]:
    return [
        Series(run.name, [{"x": x, "y": y} for x, y in _thinned(curve)])
        for run, curve in zip(runs, curves, strict=True)
        if curve
    ]


def _thinned(points: Points) -> Points:
    every = max(1, len(points) // SHOWN_POINTS)
    return [*points[::every], *points[-1:]] if len(points) % every != 1 and every > 1 else points[::every]
