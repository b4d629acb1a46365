# Pictures of a training: in which order blocks are filled, what a noisy row is filled with, losses by mask ratio.
# Entry points: Strip, Decoding, draw_strip, draw_decoding, draw_history, panel_file.
# Each draws on a matplotlib figure; report.plots.picture makes a PNG of it. Letters: S forwards, n positions.
"""Panels of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

RIGHT, WRONG, VISIBLE, DARK = "#2f9e44", "#e03131", "#ced4da", "#343a40"
ACROSS = 16


@dataclass(frozen=True)
class Strip:
    """A noisy row filled in one forward. pieces: text of each position; masked, right [n] bool; confidence [n]: of the
    likeliest token at masked positions, a probability."""

    pieces: Sequence[str]
    masked: Tensor
    right: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Decoding:
    """A text decoded by force. entropy [S, n] nats: of each position before each forward, NaN where it is not masked;
    right [n] bool: filled with the text's own token; starts: where blocks begin."""

    entropy: Tensor
    right: Tensor
    starts: Sequence[int]


def panel_file(run: Path, kind: str, step: int) -> Path:
    """Where the panel of a kind and step is."""
    return run / "panels" / f"{kind}-{step:06d}.png"


def draw_decoding(figure: Any, one: Decoding, title: str) -> None:
    """Rows are forwards, columns positions: entropy where a position is still masked, a bar of the forward's mean
    entropy beside it; the line below says which positions the model filled rightly."""
    import matplotlib

    left, side = figure.subplots(1, 2, width_ratios=(5, 1), sharey=True)
    values, (forwards, width) = one.entropy.numpy(), one.entropy.shape
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#f1f3f5")
    image = left.imshow(values, aspect="auto", cmap=colours, interpolation="nearest", vmin=0)
    for start in one.starts[1:]:
        left.axvline(start - 0.5, color=DARK, lw=0.6)
    marks = [RIGHT if right else WRONG for right in one.right.tolist()]
    left.scatter(range(width), [forwards - 0.35] * width, c=marks, s=9, marker="s", clip_on=False)
    left.set(
        title=title, xlabel="position (squares: filled rightly or not)", ylabel="forward", ylim=(forwards - 0.2, -0.5)
    )
    seen = ~one.entropy.isnan()
    means = one.entropy.nan_to_num().sum(dim=1) / seen.sum(dim=1).clamp(min=1)
    side.barh(range(forwards), means.tolist(), color="#4c6ef5")
    side.set(xlabel="mean entropy, nats")
    figure.colorbar(image, ax=left, label="entropy, nats", pad=0.01)


def draw_strip(figure: Any, one: Strip, title: str) -> None:
    """A cell for each position: green a mask filled rightly, red wrongly, darker the surer, grey what was visible."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    axes, rows = figure.subplots(), -(-len(one.pieces) // ACROSS)
    for place, piece in enumerate(one.pieces):
        row, column = divmod(place, ACROSS)
        masked, sure = bool(one.masked[place]), float(one.confidence[place])
        colour = to_rgba(RIGHT if one.right[place] else WRONG, 0.2 + 0.7 * sure) if masked else to_rgba(VISIBLE, 0.6)
        axes.add_patch(Rectangle((column, row), 0.96, 0.92, facecolor=colour))
        under = f"\n{sure:.2f}" if masked else ""
        text = piece.strip().replace("$", r"\$")[:9] + under
        axes.text(column + 0.48, row + 0.46, text, ha="center", va="center", fontsize=7, color=DARK)
    axes.set(title=title, xlim=(0, ACROSS), ylim=(rows, 0))
    axes.axis("off")


def draw_history(figure: Any, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Loss of masked positions against their mask rate, coloured by step, and the curves of the run."""
    scatter, curves = figure.subplots(1, 2)
    steps = [record for record in records if record.get("loss") is not None]
    points = [
        (0.5 * sum(map(float, name.removeprefix("rate_").split("_"))), record[name], record["step"])
        for record in steps
        for name in record
        if name.startswith("rate_") and record[name]
    ]
    if points:
        across, up, when = zip(*points, strict=True)
        made = scatter.scatter(across, up, c=when, s=8, alpha=0.6, cmap="viridis")
        figure.colorbar(made, ax=scatter, label="optimiser step")
    scatter.set(xlabel="mask rate", ylabel="nats per masked token", title=title)
    for name in ("loss", "m2t", "t2t", "keep", "kl", "align", "certainty"):
        found = [(record["step"], record[name]) for record in steps if record.get(name)]
        curves.plot(*zip(*found, strict=True), lw=0.9, label=name) if found else None
    curves.set(xlabel="optimiser step", yscale="log" if steps else "linear")
    curves.grid(alpha=0.25)
    curves.legend(fontsize=8) if steps else None
