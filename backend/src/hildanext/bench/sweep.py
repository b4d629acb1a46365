# Quality and throughput of one model against the steps it decodes with, a fixed number of forwards for every text.
# Entry points: sweep.
# Steps are spread evenly over the blocks of a text, and in a block by `static_quota`, the surest masks first. Processor
# seconds, the settings one after the other; the AR parent's own texts stand beside, where a parent is known.
"""Steps against quality."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hildanext.bench.decoding.asks import Ask, asks_for, parent_of, read_as
from hildanext.bench.decoding.quality import Agreement, Quality
from hildanext.config import Config
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.errors import ConfigError
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.report.charts import Axes, Series, lines
from hildanext.report.page import Section, page
from hildanext.run_dir import RunDir, write_atomic

HEADER = (
    "steps",
    "of a block",
    "tokens per forward",
    "tokens/s",
    "nats under the parent",
    "token F1",
    "valid",
    "agreement",
)


def sweep(config: Config, console: Console, path: Path | None) -> dict[str, Any]:
    """The report: a row for each of sweep.steps; report.json and sweep.html in a run directory. ConfigError where a
    number of steps leaves blocks without a forward. Source: LLaDA arXiv:2502.09992, steps of the sampler."""
    settings = config.sweep
    run = RunDir.create(config, "sweep", path)
    with run.running(console):
        loaded = load_model(config.model, console)
        engine = BlockEngine(loaded, config.decode)
        block = engine.block
        blocks = -(-settings.new_tokens // block)
        few = [steps for steps in settings.steps if steps < blocks]
        if few:
            raise ConfigError(
                f"sweep.steps: {few[0]} steps for {blocks} blocks of {block}; give {blocks} at least, or fewer"
                " sweep.new_tokens"
            )
        asks = asks_for(loaded, (), settings.prompts)
        texts = {steps: _decoded(config, loaded, asks, (steps, blocks)) for steps in settings.steps}
        rows, parent = _judged(config, asks, texts, console)
        report = {"model": config.model.path, "parent": parent, "block": block, "rows": rows, "run": str(run.path)}
        run.write_json("report.json", report)
        write_atomic(run.path / "sweep.html", _page(report))
    console.table([_cells(row) for row in rows], HEADER)
    console.say(f"page: {run.path / 'sweep.html'}")
    return report


def _decoded(config: Config, loaded: Any, asks: Sequence[Ask], plan: tuple[int, int]) -> dict[str, Any]:
    steps, blocks = plan
    policy = {"type": "static_quota", "steps": max(1, round(steps / blocks))}
    asked = [ask.request(config.sweep.new_tokens, {"policy": policy}) for ask in asks]
    begun = time.process_time()
    results = Driver(BlockEngine(loaded, config.decode)).run(asked)
    spent, tokens = time.process_time() - begun, sum(one.metrics.tokens for one in results)
    return {
        "steps": steps, "of_a_block": policy["steps"], "texts": [tuple(one.token_ids) for one in results],
        "tokens_per_forward": tokens / max(1, sum(one.metrics.forwards for one in results)),
        "tokens_per_second": tokens / spent,
    }  # fmt: skip


def _judged(
    config: Config, asks: Sequence[Ask], texts: Mapping[int, dict[str, Any]], console: Console
) -> tuple[list[dict[str, Any]], str]:
    named = parent_of(config, config.sweep.parent)
    if named:
        judge: Quality | Agreement = Quality.of(
            read_as(config, named, "float32", console), asks, config.sweep.new_tokens
        )
    else:
        judge = Agreement(texts[max(texts)]["texts"])
    rows = []
    for one in texts.values():
        shown = {name: value for name, value in one.items() if name != "texts"}
        rows.append(shown | judge.of_texts(one["texts"]))
    return rows, named


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("tokens_per_forward", "tokens_per_second", "nats", "token_f1", "valid", "agreement")
    return (
        str(row["steps"]), str(row["of_a_block"]),
        *("-" if row.get(name) is None else f"{row[name]:.3g}" for name in names),
    )  # fmt: skip


def _page(report: Mapping[str, Any]) -> str:
    rows = report["rows"]
    measure = "nats" if report["parent"] else "agreement"
    charts = [
        _chart(
            rows, measure, "nats per token under the parent" if report["parent"] else "agreement with the most steps"
        ),
        _chart(rows, "tokens_per_second", "tokens per processor second"),
    ]
    prose = "The same prompts at every number of steps; in a block the surest masks are filled first."
    table = Section("Steps against quality", prose, HEADER, [_cells(row) for row in rows], charts, wide=True)
    lead = f"{report['model']}, blocks of {report['block']}"
    return page("Steps of decoding", lead, [], [table], f"run: {report['run']}")


def _chart(rows: Sequence[Mapping[str, Any]], name: str, title: str) -> str:
    points = [{"x": row["steps"], "y": row[name]} for row in rows if row.get(name) is not None]
    return lines([Series(title, points)], Axes("steps of a text", title, log_x=True)) if points else ""
