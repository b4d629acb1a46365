# The report of an evaluation as Markdown tables.
# Entry points: document, table, decoder.
# Numbers are those of report.json; nothing is computed here.
"""Markdown of evaluation reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hildanext.report.intervals import Measure

DRAWING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; '|' in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def decoder(report: Mapping[str, Any]) -> str:
    """How the texts of a report were made: left to right, or a mode or policy and every value set beside it."""
    decode = report["decode"]
    names = ("temperature", "top_k", "top_p")
    said = [f"{name} {decode[name]:g}" for name in names if decode.get(name) not in (None, DRAWING[name])]
    if report["generator"] == "autoregressive":
        return ", ".join(["left to right", *said])
    policy = decode.get("policy")
    values = {name: decode.get(name, "preset") for name in ("tau_mask", "tau_edit", "max_post_steps")}
    set_here = [f"{name} {'off' if value is None else value}" for name, value in values.items() if value != "preset"]
    block = [f"block {decode['block']}"] if decode.get("block") else []
    return ", ".join([policy["type"] if policy else decode["mode"], *set_here, *block, *said])


def document(report: Mapping[str, Any]) -> str:
    """The whole report: a heading, one table per task, samples, and the comparison where there is one."""
    lead = (
        f"# Evaluation of {report['model']}\n\n{report['generator']} generation, {decoder(report)}, "
        f"at most {report['decode']['requests']} texts at once, seed {report['seed']}, {report['dtype']} on "
        f"{report['device']}, run {report['run']}. "
        "Intervals are 95 %.\n"
    )
    parts = [lead, *(_task(task) for task in report["tasks"])]
    if report["against"]:
        parts.append("## Side by side\n\n" + _comparison(report["against"]))
    return "\n".join(parts)


def _task(task: Mapping[str, Any]) -> str:
    rows = [(name, Measure(**found).text(), str(found["items"])) for name, found in task["measures"].items()]
    head = f"## {task['task']} (version {task['version']}, {task['seconds']:.1f} s)\n\n"
    counts = ", ".join(f"{name} {count}" for name, count in sorted(task["counts"].items()))
    return head + table(("measure", "value", "items"), rows) + (f"\n\nCounts: {counts}.\n" if counts else "\n")


def _comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0]["values"])
    body = [(row["task"], row["measure"], *(_cell(row["values"][name]) for name in names)) for row in rows]
    return table(("task", "measure", *names), body) + "\n"


def _cell(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else Measure(**found).text()
