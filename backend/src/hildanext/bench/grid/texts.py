# Texts of the cells of a grid by number of steps: what the task `forwards` among grid.tasks found, cells side by side.
# Entry points: texts_sections, texts_rows, by_steps, TEXTS.
# Cells of every kind are in it, those that draw latents too. Seeds are averaged, and so are the ends of intervals.
"""Texts of a grid by number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from hildanext.report.charts import Axes, Series, lines
from hildanext.report.page import Section

MEASURES = {
    "valid": ("valid, %", 100.0), "nll": ("NLL under the parent", 1.0), "3_gram_kl": ("3-gram KL", 1.0),
    "repetition": ("self-repetition, %", 100.0),
}  # fmt: skip
COSTS = {"forwards_per_text": "forwards per text", "tokens_per_second": "tokens/s"}
TEXTS = ("cell", "steps", *(title for title, _ in MEASURES.values()), *COSTS.values())
PROSE = (
    "Texts behind held-out beginnings, by steps of a latent model's sampler or forwards of a discrete block. Valid:"
    " accepted by the world's checker. NLL: nats per token under the parent, left to right; low values alone also"
    " mean repetition. 3-gram KL: from further true texts. In brackets the 95 % interval over texts, ± is half the"
    " range over seeds. Of steps from a block's size on only the first is measured. Tokens/s hold beside each other"
    " only where nothing else ran on the machine."
)
Results = Sequence[Mapping[str, Any]]


def texts_sections(cells: Mapping[str, Results]) -> list[Section]:
    """The section of the grid's page, of the results by cell; none where no cell has texts."""
    known = {name: seeds for name, seeds in cells.items() if _settings(*seeds)}
    if not known:
        return []
    missing = ", ".join(name for name in cells if name not in known)
    prose = f"{PROSE} No number of steps at which every seed has texts of three words: {missing}." if missing else PROSE
    charts = [_chart(known, key) for key in MEASURES if _measures(next(iter(known.values())), key, "of_references")]
    return [Section("Texts by number of steps", prose, TEXTS, texts_rows(known), charts, wide=True)]


def texts_rows(cells: Mapping[str, Results]) -> list[tuple[str, ...]]:
    """Rows of TEXTS: the true texts, then every cell at every number of steps that all its seeds have."""
    rows = [("true texts", "-", *_told(next(iter(cells.values()))[:1], "of_references"), *("-" for _ in COSTS))]
    for name, seeds in cells.items():
        for steps in _settings(*seeds):
            costs = (f"{mean(_point(one, steps)[key] for one in seeds):.4g}" for key in COSTS)
            rows.append((name, str(steps or "-"), *_told(seeds, _label(steps)), *costs))
    return rows


def by_steps(name: str) -> bool:
    """Whether a measure among the tasks of a cell is one of those laid out here."""
    return name.startswith("forwards: ") and (" at_" in name or name.endswith("of_references"))


def _points(one: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = one.get("series", {}).get("forwards: steps", ())
    return found


def _settings(*seeds: Mapping[str, Any]) -> list[int]:
    return [point["steps"] for point in _points(seeds[0]) if all(_has(one, point["steps"]) for one in seeds)]


def _has(one: Mapping[str, Any], steps: int) -> bool:
    return any(point["steps"] == steps for point in _points(one))


def _point(one: Mapping[str, Any], steps: int) -> Mapping[str, Any]:
    return next(point for point in _points(one) if point["steps"] == steps)


def _label(steps: int) -> str:
    return f"at_{steps}_steps" if steps else "left_to_right"


def _measures(seeds: Results, key: str, label: str) -> Results:
    name = f"forwards: {key} {label}"
    return [one["tasks"][name] for one in seeds if name in one["tasks"]]


def _mean(found: Results) -> dict[str, float]:
    return {end: mean(one[end] for one in found) for end in ("value", "low", "high")}


def _told(seeds: Results, label: str) -> list[str]:
    told = []
    for key, (_, factor) in MEASURES.items():
        found = _measures(seeds, key, label)
        if not found:
            told.append("-")
            continue
        value, low, high = (round(factor * one, 6) for one in _mean(found).values())
        half = factor * (max(one["value"] for one in found) - min(one["value"] for one in found)) / 2
        spread = f" ± {half:.3g}" if len(found) > 1 else ""
        told.append(f"{value:.3g}{spread} [{low:.3g}, {high:.3g}]")
    return told


def _chart(cells: Mapping[str, Results], key: str) -> str:
    title, factor = MEASURES[key]
    series, places = [], list[float]()
    for name, seeds in cells.items():
        points = []
        for steps in _settings(*seeds):
            if found := _measures(seeds, key, _label(steps)):
                value, low, high = (factor * one for one in _mean(found).values())
                x = mean(_point(one, steps)["forwards_per_text"] for one in seeds)
                points.append({"x": x, "y": value, "low": low, "high": high})
        places += [point["x"] for point in points]
        series.append(Series(name, points))
    true = factor * _mean(_measures(next(iter(cells.values())), key, "of_references"))["value"]
    ends = [{"x": x, "y": true} for x in (min(places), max(places))]
    return lines([*series, Series("true texts", ends, dashed=True)], Axes("forwards per text", title, log_x=True))
