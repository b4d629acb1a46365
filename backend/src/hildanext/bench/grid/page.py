# The results of a grid as one page: two charts, a table with intervals, and every seed.
# Entry points: grid_page, table_of, header_of, by_cell, told.
# Seeds of a cell are averaged; what stands behind +- is half the range over seeds, in brackets the interval over texts.
"""Page of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from hildanext.bench.grid.paired import PAIRED, paired_rows
from hildanext.bench.grid.texts import by_steps, texts_sections
from hildanext.progress import Console
from hildanext.report.charts import Axes, Series, lines
from hildanext.report.intervals import ratio
from hildanext.report.page import Section, page

SURE = 0.9
"""The threshold whose point, or the nearest to it, is in the table."""
DETAIL = ("cell", "seed", "bound", "area", "steps", "processor seconds", "tasks")


def by_cell(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The results of each cell, over its seeds, in the order of the grid."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in results:
        found.setdefault(str(one["cell"]), []).append(one)
    return found


def _point(one: Mapping[str, Any], tau: float) -> Mapping[str, Any]:
    nearest: Mapping[str, Any] = min(one["curve"], key=lambda point: abs(point["tau"] - tau))
    return nearest


def _scored(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that have a likelihood."""
    return [one for one in results if one["block"]]


def _spread(values: Sequence[float], form: str) -> str:
    text = format(mean(values), form)
    return text if len(values) < 2 else f"{text} ± {format((max(values) - min(values)) / 2, form)}"


def header_of(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Titles of the columns of table_of."""
    scored = _scored(results)
    tau = f"{_point(scored[0], SURE)['tau'] if scored else SURE:g}"
    return (
        "cell", "bound, nats/token", "against the first", "area", f"right at {tau}", f"TPF at {tau}", "steps", "tokens",
        "tokens/s", "seconds", "memory, MiB",
    )  # fmt: skip


def table_of(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each cell, under header_of."""
    cells, rows = by_cell(results), list[tuple[str, ...]]()
    first = next((seeds for seeds in cells.values() if _scored(seeds)), [])
    for name, seeds in cells.items():
        rows.append((
            name, *(_judged(seeds, first) if _scored(seeds) else ("-",) * 5),
            f"{mean(one['steps'] for one in seeds):.0f}", f"{mean(one['tokens'] for one in seeds):,.0f}",
            f"{mean(one['tokens'] / one['processor'] for one in seeds):,.0f}",
            f"{mean(one['processor'] for one in seeds):.0f}", f"{mean(one['memory'] for one in seeds) / 2**20:.0f}",
        ))  # fmt: skip
    return rows


def _judged(seeds: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    low, high = (mean(one["bound"][end] for one in seeds) for end in ("low", "high"))
    return (
        f"{_spread([one['bound']['value'] for one in seeds], '.3f')} [{low:.3f}, {high:.3f}]",
        "-" if seeds is first else _against(seeds, first),
        _spread([one["area"] for one in seeds], ".2f"),
        _spread([100 * _point(one, SURE)["y"] for one in seeds], ".1f") + " %",
        _spread([_point(one, SURE)["x"] for one in seeds], ".2f"),
    )


def _against(seeds: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]) -> str:
    pairs = [(one, other) for one in seeds for other in first if one["seed"] == other["seed"]]
    gaps = [
        (mine - hers, count)
        for one, other in pairs
        for (mine, count), (hers, _) in zip(one["documents"], other["documents"], strict=True)
    ]
    if not gaps:
        return "-"
    found = ratio([gap for gap, _ in gaps], [float(count) for _, count in gaps])
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _curves(results: Sequence[Mapping[str, Any]]) -> str:
    series = []
    for name, seeds in by_cell(results).items():
        points = [
            {
                part: mean(one["curve"][index][part] for one in seeds) for part in ("x", "y", "low", "high")
            }
            for index in range(len(seeds[0]["curve"]))
        ]  # fmt: skip
        series.append(Series(name, sorted(points, key=lambda point: point["x"])))
    return lines(series, Axes("tokens per forward", "filled rightly", percent=True))


def _ends(one: Mapping[str, Any]) -> dict[str, float]:
    return {end: one["bound"][end] for end in ("low", "high")}


def _bounds(report: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    series = [
        Series(name, [{"x": index, "y": one["bound"]["value"], **_ends(one)} for one in seeds], joined=False)
        for index, (name, seeds) in enumerate(by_cell(results).items(), start=1)
    ]
    if report["parent"]:
        nll = report["parent"]["value"]
        series.append(Series("AR parent", [{"x": 0, "y": nll}, {"x": len(series) + 1, "y": nll}], dashed=True))
    return lines(series, Axes("cell, in the order of the table", "nats per token"))


def grid_page(report: Mapping[str, Any], description: str) -> str:
    """The whole page of the report of run_grid."""
    results = report["results"]
    scored = by_cell(_scored(results)).items()
    facts = [(report["budget"], "for every cell and seed"), (str(len(results)), "cells and seeds")]
    if scored:
        facts += [
            (min(scored, key=lambda item: mean(one["bound"]["value"] for one in item[1]))[0], "lowest bound"),
            (max(scored, key=lambda item: mean(one["area"] for one in item[1]))[0], "largest area"),
        ]
    prose = (
        "Held-out rows, the same for every cell. The bound is that of the block size the model is decoded with, in"
        " brackets its interval over documents; ± is half the range over seeds. Against the first: the difference"
        " text by text, with its interval. A model that draws its texts has no likelihood: -. The curve decodes the"
        " held-out text itself: at each threshold the tokens filled per forward, and how many of them the model would"
        " have filled rightly then. Area: under the best share at each speed, from one token per forward on."
        " Tokens/s: of training, per processor second, everything a cell needs beforehand included."
    )
    sections = [
        Section("Cells", prose, header_of(results), table_of(results), _charts(report), wide=True),
        *texts_sections(by_cell(results)),
        *_at_equal_tokens(report),
        Section("Every training", "One row for each cell and seed.", DETAIL, _details(results), wide=True),
    ]  # fmt: skip
    return page("Conversion methods beside each other", description, facts, sections, f"run: {report['run']}")


def _charts(report: Mapping[str, Any]) -> tuple[str, ...]:
    scored = _scored(report["results"])
    return (_bounds(report, scored), _curves(scored)) if scored else ()


def _at_equal_tokens(report: Mapping[str, Any]) -> list[Section]:
    prose = (
        "The later half of the steps whose masks and learning rate are those of the first cell, up to the step named:"
        " the difference of the masked tokens' cross-entropy with its standard error, how many steps earlier that is"
        " reached, and the processor time of a step, both against the first cell. Where a step takes longer, being"
        " ahead by less than that share of the steps is being behind in time."
    )
    found = report.get("paired", [])
    return [Section("At equal tokens", prose, PAIRED, paired_rows(found), wide=True)] if found else []


def _details(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            str(one["cell"]), str(one["seed"]), f"{one['bound']['value']:.4f}" if one["block"] else "-",
            f"{one['area']:.3f}" if one["block"] else "-", str(one["steps"]), f"{one['processor']:.1f}",
            ", ".join(
                f"{name} {value['value']:.3g}" for name, value in one["tasks"].items() if not by_steps(name)
            ),
        )
        for one in results
    ]  # fmt: skip


def told(report: Mapping[str, Any], console: Console) -> None:
    """The table on the console."""
    if report["parent"]:
        console.say(f"AR parent, left to right: {report['parent']['value']:.3f} nats per token")
    console.table(table_of(report["results"]), header_of(report["results"]))
    if report.get("paired"):
        console.say("at equal tokens, against the first cell:")
        console.table(paired_rows(report["paired"]), PAIRED)
