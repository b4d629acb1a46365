# First part of the demo: a model of 0.49 M parameters learns three tasks, then answers each in one or two forwards.
# Entry points: toy.
# tau 1 is never exceeded, so it fills one token per forward: the price an AR decoder would pay.
"""Toy proof of parallel decoding."""

from __future__ import annotations

import statistics
from typing import Any

from hildanext.report.charts import bars
from hildanext.report.page import Section
from hildanext.selftest.demo.part import Part, Stage
from hildanext.selftest.demo.toy_tasks import ANSWER, TASKS, measure_toy
from hildanext.selftest.demo.toy_training import SEED

TAUS = (0.5, 0.9, 0.99, 1.0)


def toy(stage: Stage) -> Part:
    """Wait for the trained model, measure every task at every threshold."""
    loaded, training = stage.toy.trained(stage.console)
    rows: list[dict[str, Any]] = []
    with stage.console.bar("toy tasks: decoding", len(TAUS) * len(TASKS)) as bar:
        for name in TASKS:
            for tau in TAUS:
                settings = {"tau_mask": tau, "tau_edit": None}
                found = measure_toy(loaded, name, stage.sizes.toy_items, SEED + 1, **settings)
                rows.append(found | {"tau_mask": tau})
                bar.advance()
    _show(stage, rows)
    prose = (
        f"A fresh model of {training.parameters:,} parameters was trained for {training.cpu_seconds:.0f} CPU-seconds "
        f"({training.steps} steps) to reverse 8 letters, sort 8 digits and add 3-digit numbers. Each answer is a "
        f"canvas of {ANSWER} masked characters. Positions whose probability exceeds tau are filled together; "
        f"one by one needs {ANSWER} forwards. The questions were held out of training. "
        "Cells: exact match, its 95 % interval, forwards."
    )
    section = Section("Exact answers in a forward or two", prose, HEADER, _table(rows), [_chart(rows)], wide=True)
    data = {"training": vars(training), "rows": rows}
    return Part(section, data, _facts(rows))


HEADER = ("task", *(f"tau {tau:g}" if tau < 1 else "one by one" for tau in TAUS))


def _table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    tasks = dict.fromkeys(row["task"] for row in rows)
    return [(task, *(_cell(row) for row in rows if row["task"] == task)) for task in tasks]


def _cell(row: dict[str, Any]) -> str:
    exact = row["exact_match"]
    interval = f"[{100 * exact['low']:.0f}, {100 * exact['high']:.0f}]"
    return f"{100 * exact['value']:.0f} % {interval} in {row['forwards']['value']:.1f}"


def _show(stage: Stage, rows: list[dict[str, Any]]) -> None:
    stage.console.table(_table(rows), HEADER)


def _chart(rows: list[dict[str, Any]]) -> str:
    means = [statistics.mean(row["forwards"]["value"] for row in rows if row["tau_mask"] == tau) for tau in TAUS]
    return bars([*zip(HEADER[1:], means, strict=True)], "forwards")


def _facts(rows: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    at = [row for row in rows if row["tau_mask"] == 0.9]
    right = sum(row["exact_match"]["value"] for row in at) / len(at)
    forwards = sum(row["forwards"]["value"] for row in at) / len(at)
    return ((f"{100 * right:.0f} %", f"of toy answers exactly right, {forwards:.1f} forwards instead of {ANSWER}"),)
