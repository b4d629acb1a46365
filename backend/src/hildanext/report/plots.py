# PNG plots: the one place that asks matplotlib for a figure, and the plot of an evaluation series.
# Entry points: picture, png.
# Without matplotlib the reason is returned and nothing is written. The charts of the HTML report need no package.
"""PNG plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

AXES = {
    "bound": ("block size, tokens", "nats per token"),
    "frontier": ("tokens per forward", "quality"),
    "steps": ("forwards per text", "divergence of 3-grams, nats"),
    "multiple": ("tokens per forward", "nats under the parent, as a multiple of its own"),
}
SCATTERED = ("multiple",)


def picture(
    path: Path, draw: Callable[[Any], None], size: tuple[float, float] = (9, 4.5), dots_per_inch: int = 110
) -> str:
    """Write the PNG of what draw(figure) draws on an empty figure of `size` inches, without a display.
    Returns '' or the reason why nothing was drawn."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        return f"{path.name} is not drawn: matplotlib is not installed ({error}); pip install 'hildanext[plots]'"
    figure = Figure(figsize=size, dpi=dots_per_inch, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return ""


def png(path: Path, title: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Draw points {x, y, low, high, label} with error bars; returns '' or the reason why nothing was drawn."""
    if not points:
        return f"{path.name} is not drawn: the series has no points"
    ordered = sorted(points, key=_x)
    x, y = [point["x"] for point in ordered], [point["y"] for point in ordered]
    below = [max(0.0, point["y"] - point.get("low", point["y"])) for point in ordered]
    above = [max(0.0, point.get("high", point["y"]) - point["y"]) for point in ordered]
    series = path.stem.rpartition("-")[2]
    across, up = AXES.get(series, ("x", "y"))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.errorbar(x, y, yerr=[below, above], fmt="o" if series in SCATTERED else "o-", capsize=3, color="#2a6fdb")
        for point in ordered:
            place, label = (point["x"], point["y"]), str(point.get("label", ""))
            inwards = {"ha": "right", "xytext": (-6, 6)} if 2 * point["x"] > x[0] + x[-1] else {"xytext": (6, 6)}
            axes.annotate(label, place, textcoords="offset points", **inwards)
        axes.set(title=title, xlabel=across, ylabel=up)
        axes.grid(alpha=0.25)

    return picture(path, draw, (6, 4))


def _x(point: Mapping[str, Any]) -> float:
    return float(point["x"])
