# The loss of a run over its steps, phases shaded, as plots/loss.png.
# Entry points: plot_losses, Plot.
# Needs matplotlib; without it the result carries the reason and no file is made.
"""Plots of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext.core.block_ladder import Ladder
from hildanext.report.plots import picture

SHADES = {"warmup": "#fff3d6", "stable": "#dcefe0", "decay": "#dde6f7"}


@dataclass(frozen=True)
class Plot:
    """path: the PNG, None where it could not be drawn; reason: why not, else empty."""

    path: Path | None
    reason: str


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line cut short by a kill is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def plot_losses(run: Path, ladder: Ladder) -> Plot:
    """Draw training loss and evaluation NLL (or loss, without a likelihood) over steps, the ladder's phases behind."""
    path = run / "plots" / "loss.png"
    reason = picture(path, lambda figure: _draw(figure.add_subplot(), read_metrics(run), ladder))
    return Plot(None if reason else path, reason)


def _draw(axes: Any, records: list[dict[str, Any]], ladder: Ladder) -> None:
    for stage in ladder.stages:
        axes.axvspan(stage.first, stage.first + stage.steps, color=SHADES.get(stage.phase, "#eeeeee"), lw=0)
        axes.text(stage.first, 1.0, f" {stage.block}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
    losses = [(record["step"], record["loss"]) for record in records if record.get("loss") is not None]
    axes.plot(*zip(*losses, strict=True), lw=0.8, label="training loss") if losses else None
    scores = [(record["step"], record["eval"]["eval_nll"]) for record in records if "eval" in record]
    bare = any("terms" in record.get("eval", {}) for record in records)
    label, unit = ("evaluation loss", "loss per token") if bare else ("evaluation NLL", "nats per token")
    axes.plot(*zip(*scores, strict=True), "o-", lw=1.5, label=label) if scores else None
    axes.set_xlabel("optimiser step (block sizes along the top)")
    axes.set_ylabel(unit)
    axes.legend()
