# The picture of the decoding benchmark: tokens per second of every variant, and the break-even TPF per block size.
# Entry points: plot.
# Needs matplotlib; without it the report carries the reason instead of a path.
"""Plot of the decoding benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot(report: dict[str, Any], path: Path) -> str:
    """Write the PNG and return its path, or the reason why there is none."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        return f"no plot: matplotlib is not installed ({error}); install hildanext[plots]"
    figure: Any = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _speeds(left, report["precisions"])
    _break_even(right, report["precisions"])
    figure.savefig(path, dpi=110)
    return str(path)


def _speeds(axes: Any, parts: dict[str, Any]) -> None:
    names, speeds = [], []
    for precision, part in parts.items():
        names.append(f"{precision}: AR")
        speeds.append(part["autoregressive"]["tokens_per_second"])
        for name, row in part["engine"].items():
            names.append(f"{precision}: {name}")
            speeds.append(row["tokens_per_second"])
    axes.barh(range(len(names)), speeds, color=["#888888" if name.endswith("AR") else "#3b6ea5" for name in names])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s")


def _break_even(axes: Any, parts: dict[str, Any]) -> None:
    for precision, part in parts.items():
        points = sorted((int(size), value) for size, value in part["break_even_tpf"].items())
        axes.plot(*zip(*points, strict=True), "o-", label=precision)
    axes.set_xlabel("block size, tokens")
    axes.set_ylabel("TPF above which block diffusion is faster than AR")
    axes.legend()
