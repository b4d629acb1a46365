# The demo's part that asks what is fastest on this machine: a short `hildanext tune` of the bundled child.
# Entry points: fastest.
# Quality is watched as there: a setting whose texts the parent likes less than the usual setting's takes no part.
"""The fastest setting, as a part of the demo."""

from __future__ import annotations

from typing import Any

from hildanext.bench.tuning.search import tune
from hildanext.config.decode import DecodeConfig
from hildanext.config.model import ModelConfig
from hildanext.progress import Console
from hildanext.report.charts import bars
from hildanext.report.page import Section
from hildanext.selftest.demo.part import Part, Stage

FINALISTS, TEXTS, TURNS = 2, 3, 2


def fastest(stage: Stage) -> Part:
    """A search of sizes.tuning seconds; its finalists beside the parent read left to right."""
    settings = stage.config.tune.model_copy(
        update={"seconds": stage.sizes.tuning, "finalists": FINALISTS, "texts": TEXTS, "repeats": TURNS, "write": False}
    )
    update = {"tune": settings, "model": ModelConfig(path="tiny"), "decode": DecodeConfig()}
    found = tune(stage.config.model_copy(update=update), Console(quiet=True), stage.work / "tune")
    labels = {name: _label(name, found) for name in found["variants"]}
    rows = [(labels[name], *_row(name, one)) for name, one in found["variants"].items()]
    prose = (
        f"{len(found['tried'])} settings (mode, block, window, dtype, threads, engine) tried within "
        f"{stage.sizes.tuning:.0f} seconds, the fastest then in turns with the usual one and with the quickest way to "
        f"read the parent left to right. Judged by: {found['measures']}. {_sentence(found['answer'])}"
    )
    header = ("", "decoder", "tokens/s", "nats per token under the parent", "repetition")
    chart = bars([(labels[name], one["tokens_per_second"]) for name, one in found["variants"].items()], "tokens/s")
    section = Section("The fastest setting on this machine", prose, header, rows, [chart], wide=True)
    stage.console.say(found["answer"])
    keep = ("answer", "values", "variants", "reference", "tried", "seconds")
    return Part(section, {name: found[name] for name in keep})


def _label(name: str, found: dict[str, Any]) -> str:
    if found["variants"][name]["kind"] == "baseline":
        return "parent, left to right"
    known = {found["reference"]: "child, as usual", found["fastest"]: "child, fastest"}
    return known.get(name, "child, runner-up")


def _row(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    nats = "" if one["nats"] is None else f"{one['nats']:.2f}"
    return name, f"{one['tokens_per_second']:.0f}", nats, f"{one['repetition']:.2f}"


def _sentence(said: str) -> str:
    return said[:1].upper() + said[1:] + ("" if said.endswith(".") else ".")
