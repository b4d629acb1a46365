# Several evaluation reports side by side.
# Entry points: read_report, side_by_side.
# Tasks are matched by name, version and, where one is run several times, order: numbers of different versions never
# share a line.
"""Comparison of evaluation runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hildanext.errors import DataError
from hildanext.report.markdown import decoder


def read_report(path: Path) -> dict[str, Any]:
    """report.json of a run directory, or the file itself. DataError where it is none of an evaluation."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; give the directory of an `hildanext eval` run") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not valid JSON ({error}); give the directory of an `hildanext eval` run") from error
    if not isinstance(report, dict) or "tasks" not in report or "run" not in report:
        raise DataError(f"{file}: not an evaluation report; give the directory of an `hildanext eval` run")
    return report


def side_by_side(own: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per task, version and measure that any report has: {task, measure, values {label: measure or None}}.
    Empty without others."""
    if not others:
        return []
    reports: dict[str, dict[tuple[str, int, str], Any]] = {}
    for report in (own, *others):
        label = _label(report)
        again = sum(name == label or name.startswith(f"{label} #") for name in reports)
        reports[f"{label} #{again + 1}" if again else label] = _flat(report)
    keys = dict.fromkeys(key for found in reports.values() for key in found)
    return [
        {
            "task": f"{task} v{version}",
            "measure": measure,
            "values": {label: found.get((task, version, measure)) for label, found in reports.items()},
        }
        for task, version, measure in keys
    ]


def _label(report: Mapping[str, Any]) -> str:
    return f"{report['model']} {decoder(report)} ({report['run']})"


def _flat(report: Mapping[str, Any]) -> dict[tuple[str, int, str], Any]:
    found: dict[tuple[str, int, str], Any] = {}
    seen: Counter[tuple[str, int]] = Counter()
    for task in report["tasks"]:
        kind = (task["task"], task["version"])
        seen[kind] += 1
        name = task["task"] if seen[kind] == 1 else f"{task['task']} #{seen[kind]}"
        found |= {(name, task["version"], measure): one for measure, one in task["measures"].items()}
    return found
