# What every cell of a grid is judged by: the bound at its block, and what it fills rightly at which speed.
# Entry points: scored, curve_of, area.
# The curve is of forced decoding of held-out text: at each threshold the tokens filled per forward, and the share of
# them that the model itself would have filled rightly at that moment. No generation, so no luck of a few texts.
"""Evaluation of a cell."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hildanext.config import Config
from hildanext.core.likelihood import autoregressive_nll, block_elbo
from hildanext.core.types import Batch
from hildanext.data.shards import ShardSet, check_tokenizer, scored_batch
from hildanext.decoding.engine import DEFAULT_BLOCK
from hildanext.decoding.forced import forced
from hildanext.decoding.policies.threshold_edit import ThresholdEdit
from hildanext.measure.task import EvalContext, Outcome, Task
from hildanext.models.latent import draws_texts
from hildanext.models.load import Loaded, load_model
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.report.intervals import ratio
from hildanext.train.training import open_shards

SEED, AT_ONCE = 90_001, 8
AS_RECORDED = {"mask_id": None, "shift": "auto", "block_grid": "auto"}
"""A cell may have changed them: its model knows."""


def scored(config: Config, path: str, console: Console) -> dict[str, Any]:
    """{block, bound, documents: [nats, tokens] each, curve, area, tasks, series} of the model at `path` on the first
    grid.rows rows of train.eval_split, with intervals over documents or rows; tasks, series: measures and points of
    grid.tasks. A model that draws its texts has no likelihood: block 0, tasks and series alone. Source:
    docs/conversion-methods.md, what is measured."""
    loaded = load_model(
        config.model.model_copy(update={"path": path, "adapter": type(config.model.adapter)(), **AS_RECORDED}), console
    )
    outcomes = [(section.type, _outcome(section, loaded, config, console)) for section in config.grid.tasks]
    measures = {
        f"{name}: {label}": one.as_dict() for name, outcome in outcomes for label, one in outcome.measures.items()
    }
    series = {f"{name}: {label}": points for name, outcome in outcomes for label, points in outcome.series.items()}
    found = dict[str, Any](block=0) if draws_texts(loaded.denoiser) else _likely(config, loaded)
    return {**found, "tasks": measures, "series": series}


def _likely(config: Config, loaded: Loaded) -> dict[str, Any]:
    shards = open_shards(config, config.train.eval_split)
    check_tokenizer(shards, loaded.tokenizer)
    block, batches = loaded.meta.block or DEFAULT_BLOCK, list(_batches(shards, config.grid.rows, loaded))
    rng = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        found = [block_elbo(loaded.denoiser, batch, block, rng, config.grid.samples) for batch in batches]
    pairs = [pair for one in found for pair in one.documents]
    bound = ratio([nats for nats, _ in pairs], [float(count) for _, count in pairs], "nats per token")
    curve = curve_of(loaded, batches, block, config.grid.taus)
    return {
        "block": block, "bound": bound.as_dict(), "documents": [list(pair) for pair in pairs], "curve": curve,
        "area": area(curve),
    }  # fmt: skip


def parent_nll(config: Config, console: Console) -> dict[str, Any] | None:
    """The NLL of model.path read left to right on the same rows; None where it is no AR model."""
    loaded = load_model(config.model, console)
    if loaded.meta.block is not None:
        return None
    batches = _batches(open_shards(config, config.train.eval_split), config.grid.rows, loaded)
    pairs = [pair for batch in batches for pair in autoregressive_nll(loaded.denoiser, batch).documents]
    return ratio([nats for nats, _ in pairs], [float(count) for _, count in pairs], "nats per token").as_dict()


def _batches(shards: ShardSet, rows: int, loaded: Loaded) -> list[Batch]:
    count = min(rows, len(shards))
    parts = [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
    return [scored_batch(shards, list(part), loaded.denoiser.mask_id).to(loaded.device) for part in parts]


def curve_of(loaded: Loaded, batches: Sequence[Batch], block: int, taus: Sequence[float]) -> list[dict[str, Any]]:
    """For each threshold: tokens per forward `x`, share filled rightly `y` with its interval over rows, and processor
    seconds per filled token."""
    made = []
    for tau in taus:
        policy, begun = ThresholdEdit(tau_mask=tau, tau_edit=None), time.process_time()
        found = [forced(loaded.denoiser, batch, block, policy) for batch in batches]
        tokens = torch.cat([one.tokens() for one in found]).double()
        right = torch.cat([one.right.sum(dim=1) for one in found]).double()
        forwards = torch.cat([one.forwards() for one in found]).double()
        speed = ratio(tokens.tolist(), forwards.tolist(), "tokens per forward")
        quality = ratio(right.tolist(), tokens.tolist(), "share")
        made.append({
            "tau": tau, "x": speed.value, "y": quality.value, "low": quality.low, "high": quality.high,
            "label": f"{tau:g}", "seconds_per_token": (time.process_time() - begun) / max(1.0, float(tokens.sum())),
        })  # fmt: skip
    return made


def area(curve: Sequence[Mapping[str, Any]]) -> float:
    """The area under the best quality at each speed, from 1 token per forward to the fastest point: the integral of
    max(y of the points at least as fast). Source: d3LLM arXiv:2601.07568, area under accuracy and parallelism; ours has
    no threshold of accuracy."""
    points = sorted((max(1.0, float(one["x"])), float(one["y"])) for one in curve)
    total, before = 0.0, 1.0
    for index, (x, _) in enumerate(points):
        total += (x - before) * max(y for _, y in points[index:])
        before = x
    return total


def _outcome(section: Any, loaded: Loaded, config: Config, console: Console) -> Outcome:
    task: Task = build("tasks", section, "grid.tasks")
    return task.run(EvalContext.of(loaded, config, console))
