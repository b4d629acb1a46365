# bench gpu: what this project claims of a GPU, by one command in at most eight minutes, into one JSON file and a page.
# Entry points: run(config, console, args), PARTS, measured.
# A part that fails is written down with its reason and the next one runs; parts for which no time is left are named.
"""The device benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hildanext.bench.device import training
from hildanext.bench.device.decoding import decoding
from hildanext.bench.device.sizes import Sizes
from hildanext.config import Config
from hildanext.disk import write_atomic
from hildanext.errors import ModelError, RunError, first_line
from hildanext.models.hardware import devices
from hildanext.models.load import choose_device
from hildanext.progress import Console
from hildanext.report.page import Section, page
from hildanext.run_dir import RunDir

Part = Callable[[Config, Sizes, torch.device], Mapping[str, Any]]
RANK_SECONDS = 120


def ranks(config: Config, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """What one process under torchrun says (bench/device/rank.py). RunError where it ends without an answer."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m"]
    done = subprocess.run(
        [*command, "hildanext.bench.device.rank", device.type], capture_output=True, text=True, timeout=RANK_SECONDS
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RunError(f"torchrun: {(done.stderr.strip().splitlines() or ['no output'])[-1][:200]}")
    return dict(json.loads(lines[-1]))


PARTS: Mapping[str, tuple[str, Part]] = {
    "decoding": ("Decoding, eager and with CUDA graphs, beside the AR model", decoding),
    "attention": ("FlexAttention, compiled, against the dense mask", training.attention),
    "drift": ("bfloat16 against float32", training.drift),
    "steps": ("Training steps: seconds, and memory against the preflight", training.steps),
    "nf4": ("NF4 weights", training.nf4),
    "ranks": ("One rank under torchrun, NCCL", ranks),
}


def run(config: Config, console: Console, args: Any = None) -> dict[str, Any]:
    """Measure every part within bench.gpu.seconds; report.json and gpu.html in a run directory. ModelError at once
    where there is no CUDA device, or the installed torch has no kernels for it."""
    if not torch.cuda.is_available():
        raise ModelError("bench gpu: torch sees no CUDA device here; run it where one is, with a CUDA build of torch")
    device = choose_device("cuda")
    about = devices()[1]
    if about["problem"]:
        raise ModelError(f"bench gpu: {about['problem']}")
    directory = RunDir.create(config, "bench-gpu", getattr(args, "run_dir", None))
    with directory.running(console):
        report: dict[str, Any] = {"run": str(directory.path), "device": about, "torch": torch.__version__}
        report["parts"] = measured(config, Sizes(), device, console)
        directory.environment(device=str(device), dtype=["bfloat16", "float32"])
        directory.write_json("report.json", report)
        write_atomic(directory.path / "gpu.html", _page(report))
    console.say(f"page: {directory.path / 'gpu.html'}")
    return report


def measured(
    config: Config, sizes: Sizes, device: torch.device, console: Console, parts: Mapping[str, tuple[str, Part]] = PARTS
) -> dict[str, Any]:
    """What each part found, with its seconds; {"skipped": why} for one that failed or found no time left."""
    started, found = time.monotonic(), dict[str, Any]()
    for name, (title, part) in parts.items():
        begun = time.monotonic()
        if begun - started > config.bench.gpu.seconds:
            found[name] = {"skipped": f"no time was left of bench.gpu.seconds={config.bench.gpu.seconds:g}"}
            continue
        console.say(f"bench gpu: {title}")
        try:
            found[name] = {"found": dict(part(config, sizes, device))}
        except Exception as error:  # a device fails in ways nobody lists; the other parts are worth having
            found[name] = {"skipped": f"{type(error).__name__}: {first_line(error)}"}
            console.warn(f"bench gpu: {name}: {found[name]['skipped']}")
        found[name]["seconds"] = time.monotonic() - begun
    return found


def _page(report: Mapping[str, Any]) -> str:
    sections = []
    for name, part in report["parts"].items():
        rows = [(place, f"{value:.4g}") for place, value in _flat(part.get("found", {}))]
        sections.append(Section(PARTS[name][0], "", ("what", "value"), rows, skipped=part.get("skipped", "")))
    facts = [(str(report["device"]["name"]), "device"), (report["torch"], "torch")]
    lead = "Medians of turns on this machine; bytes and seconds are plain, shares of 1."
    return page("This GPU", lead, facts, sections, "hildanext bench gpu")


def _flat(found: Mapping[str, Any], before: str = "") -> list[tuple[str, float]]:
    rows = []
    for name, value in found.items():
        place = f"{before}{name}"
        rows += _flat(value, f"{place}: ") if isinstance(value, Mapping) else [(place, float(value))]
    return rows
