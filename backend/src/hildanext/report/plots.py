# PNG plots of evaluation series, where matplotlib is installed.
# Entry points: png.
# The self-contained charts of the HTML report are drawn by charts.py and need no package.
"""PNG plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

AXES = {"bound": ("block size, tokens", "nats per token"), "frontier": ("tokens per forward", "quality")}


def png(path: Path, title: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Draw points {x, y, low, high, label} with error bars; returns '' or the reason why nothing was drawn."""
    if find_spec("matplotlib") is None:
        return f"{path.name} is not drawn: matplotlib is missing; pip install 'hildanext[plots]'"
    if not points:
        return f"{path.name} is not drawn: the series has no points"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    ordered = sorted(points, key=_x)
    x, y = [point["x"] for point in ordered], [point["y"] for point in ordered]
    below = [max(0.0, point["y"] - point.get("low", point["y"])) for point in ordered]
    above = [max(0.0, point.get("high", point["y"]) - point["y"]) for point in ordered]
    axes.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, color="#2a6fdb")
    for point in ordered:
        axes.annotate(str(point.get("label", "")), (point["x"], point["y"]), xytext=(6, 6), textcoords="offset points")
    across, up = AXES.get(path.stem.rpartition("-")[2], ("x", "y"))
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.grid(alpha=0.25)
    figure.savefig(path)
    return ""


def _x(point: Mapping[str, Any]) -> float:
    return float(point["x"])
