# What this installation can do: devices, dtype, attention, engines, extras, and the line that would change each.
# Entry points: diagnose, lines.
# Engines are opened on the configured model and closed again: what is reported is what would happen.
"""The report of `hildanext doctor`."""

from __future__ import annotations

import os
from typing import Any

import torch

from hildanext import registry
from hildanext.config import Config
from hildanext.environment import environment, extras, usable_cores
from hildanext.errors import HildaError
from hildanext.measure.sandbox import walls
from hildanext.models.backend import choose_backend
from hildanext.models.hardware import devices, slow_dtype
from hildanext.models.load import choose_device, choose_dtype
from hildanext.progress import Console


def diagnose(config: Config) -> dict[str, Any]:
    """The report as an object: environment, devices, dtype and attention with reasons, engines, missing extras."""
    device = choose_device(config.model.device)
    dtype, dtype_reason = choose_dtype(config.model.dtype, device)
    backend = choose_backend(config.model.attention, device, config.tokenize.window, config.ladder.decay_to)
    missing = {name: packages for name, packages in extras().items() if packages}
    return {
        **environment(),
        "torch_threads": torch.get_num_threads(),
        "devices": devices(),
        "device": str(device),
        "dtype": {"name": str(dtype).removeprefix("torch."), "reason": _reason(dtype, dtype_reason, device)},
        "attention": {"name": backend.name, "reason": backend.reason},
        "sandbox": {wall.name: "" if wall.stands else wall.why for wall in walls()},
        "engines": {name: _engine(name, config) for name in registry.names("engines")},
        "missing_extras": {name: _install(name, packages) for name, packages in sorted(missing.items())},
    }


def _reason(dtype: torch.dtype, reason: str, device: torch.device) -> str:
    slow = slow_dtype(dtype, device, "model.dtype")
    return f"{reason}; {slow}" if slow else reason


def _engine(name: str, config: Config) -> dict[str, Any]:
    try:
        opening = registry.build("engines", {"type": name}).open(config, Console(quiet=True))
    except HildaError as error:
        return {"ok": False, "reasons": [str(error)]}
    if opening.session is not None:
        opening.session.close()
    return {"ok": opening.capability.ok, "reasons": list(opening.capability.reasons)}


def _units(units: dict[str, bool]) -> str:
    without = [name for name, there in units.items() if not there]
    return f", no units for {' and '.join(without)} (ten times slower than float32)" if without else ""


def _install(name: str, packages: list[str]) -> dict[str, Any]:
    return {"packages": packages, "install": f"pip install -e 'backend[{name}]'"}


def lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report as rows (what, finding) for a terminal."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items() if number)
    waiting = os.environ.get("OMP_WAIT_POLICY", "not set")
    threads = f"{report['torch_threads']} on {usable_cores()} usable cores, OMP_WAIT_POLICY {waiting}"
    rows = [("python", f"{report['python']} on {report['platform']}"), ("packages", versions), ("threads", threads)]
    for row in report["devices"]:
        memory = f"{row['memory'] / 2**30:.1f} GiB" + _units(row.get("units", {}))
        rows.append((row["device"], f"{row['name']}, {memory}" + (f"; {row['problem']}" if row["problem"] else "")))
    rows += [(key, f"{report[key]['name']}: {report[key]['reason']}") for key in ("dtype", "attention")]
    fallen = [f"{name} ({why})" for name, why in report["sandbox"].items() if why]
    stand = f"{len(report['sandbox']) - len(fallen)} of {len(report['sandbox'])} walls stand"
    rows.append(("sandbox", stand + (f"; missing: {', '.join(fallen)}; docs/sandbox.md" if fallen else "")))
    for name, found in report["engines"].items():
        rows.append((f"engine {name}", "opens" if found["ok"] else "cannot open: " + "; ".join(found["reasons"])))
    rows += [
        (f"extra {name}", f"missing {', '.join(f['packages'])}: {f['install']}")
        for name, f in report["missing_extras"].items()
    ]
    return rows
