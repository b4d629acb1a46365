# The demo: proof on toy tasks, then the bundled pair converted, compared, timed, tuned, repaired, watched; one report.
# Entry points: demo, Sizes.
# The toy learns in a process of its own during the first parts, and no timing starts before it has ended.
# A part that cannot run is named on the console and in the report with its reason; the others still run.
"""The demo command's work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.environment import environment
from hildanext.errors import ModelError
from hildanext.models.load import model_folder
from hildanext.progress import Console
from hildanext.report.page import page
from hildanext.run_dir import RunDir, write_atomic
from hildanext.selftest.demo import decoding as demo_decoding
from hildanext.selftest.demo import fastest as demo_fastest
from hildanext.selftest.demo import pair as demo_pair
from hildanext.selftest.demo import toy as demo_toy
from hildanext.selftest.demo.part import Part, Sizes, Stage
from hildanext.selftest.demo.toy_training import toy_training

TITLE = "From autoregressive to diffusion, on this machine"
LEAD = (
    "Every number on this page was measured by this run of hildanext demo. Intervals are 95 %. "
    "A forward is one pass through the network; an autoregressive model needs one per token."
)
FULL = Sizes()
QUICK = Sizes(
    toy_steps=20, toy_items=8, steps=7, stories=3, nll_stories=2, samples=1, rounds=1, new_tokens=32, taus=(0.5, 0.9),
    documents=200, tuning=1.0,
)  # fmt: skip
PARTS: dict[str, Callable[[Stage], Part]] = {
    "toy": demo_toy.toy,
    "conversion": demo_pair.conversion,
    "likelihood": demo_pair.likelihood,
    "frontier": demo_pair.frontier,
    "speed": demo_decoding.speed,
    "fastest": demo_fastest.fastest,
    "repair": demo_decoding.repair,
    "story": demo_decoding.watched,
}
RUN = ("conversion", "likelihood", "frontier", "toy", "speed", "fastest", "repair", "story")
TITLES = {
    "conversion": "The bundled parent, converted just now",
    "likelihood": "How well each model knows the text",
    "frontier": "Quality against speed",
    "speed": "Tokens per second",
    "fastest": "The fastest setting on this machine",
    "repair": "Finding and repairing planted errors",
    "story": "One story, forward by forward",
}


@dataclass(frozen=True)
class Demo:
    """What a demo run made: its report and where it is."""

    report: dict[str, Any]
    page: Path


def demo(config: Config, console: Console, run_dir: Path | None = None, quick: bool = False) -> Demo:
    """Run all parts; report.json and report.html in the run directory. quick: sizes too small to prove anything."""
    run, sizes = RunDir.create(config, "demo", run_dir), QUICK if quick else FULL
    started = time.monotonic()
    with run.running(console), toy_training(sizes.toy_steps, run.path / "work" / "toy.pt", console) as toy:
        stage, missing = Stage(config, console, run, sizes, toy), _missing()
        made = {name: _part(stage, name, PARTS[name], missing) for name in RUN}
        parts = [made[name] for name in PARTS]
        seconds = time.monotonic() - started
        report = _report(parts, seconds, quick)
        run.write_json("report.json", report)
        path = run.path / "report.html"
        write_atomic(path, _html(parts, report))
    for part in parts:
        for number, what in part.facts:
            console.say(f"{number}: {what}")
    console.say(f"{seconds / 60:.1f} minutes; open {path.resolve().as_uri()}")
    return Demo(report | {"run": str(run.path), "page": str(path)}, path)


def _missing() -> str:
    for name in ("tiny-parent", "tiny"):
        try:
            model_folder(name)
        except ModelError as error:
            return str(error)
    return ""


def _part(stage: Stage, name: str, part: Callable[[Stage], Part], missing: str) -> Part:
    if missing and name != "toy":
        stage.console.warn(f"demo part {name!r} is not run: {missing}")
        return Part.skipped(name, TITLES[name], missing)
    stage.console.say(f"-- {TITLES.get(name, 'Toy tasks')}")
    started, cpu = time.monotonic(), time.process_time()
    found = part(stage).timed(name, time.monotonic() - started, time.process_time() - cpu)
    stage.run.status(part=name)
    stage.run.log(f"part {name}: {found.seconds:.1f} s, {found.cpu_seconds:.1f} CPU-seconds")
    return found


def _report(parts: list[Part], seconds: float, quick: bool) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "quick": quick,
        "environment": environment(),
        "facts": [list(fact) for part in parts for fact in part.facts],
        "parts": {part.name: part.as_dict() for part in parts},
    }


def _html(parts: list[Part], report: dict[str, Any]) -> str:
    known = report["environment"]
    shown = ", ".join(
        f"{name} {known[name]}" for name in ("hildanext", "python", "torch", "platform") if known.get(name)
    )
    lead = LEAD + (" This was a quick run, too short to prove anything." if report["quick"] else "")
    facts = [fact for part in parts for fact in part.facts]
    footer = f"{report['seconds'] / 60:.1f} minutes. {shown}"
    return page(TITLE, lead, facts, [part.section for part in parts], footer)
