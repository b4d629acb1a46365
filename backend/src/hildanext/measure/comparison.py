# Several evaluation reports side by side.
# Entry points: read_report, side_by_side.
# Tasks are matched by name and version: numbers of different versions never share a line.
"""Comparison of evaluation runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hildanext.errors import DataError


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
    reports = {_label(report): _flat(report) for report in (own, *others)}
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
    return f"{report['model']} {report['decode']['mode']} ({report['run']})"


def _flat(report: Mapping[str, Any]) -> dict[tuple[str, int, str], Any]:
    return {
        (task["task"], task["version"], measure): found
        for task in report["tasks"]
        for measure, found in task["measures"].items()
    }
