# How much memory a run needs on one device, before anything is loaded, and which settings would fit.
# Entry points: estimate, require_memory.
# What the model itself needs is its kind's to say (models/kind.py, Footprint); here it meets the device and the run.
"""Memory preflight."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch

from hildanext.config import Config
from hildanext.config.model import AdapterConfig
from hildanext.core.types import Objective
from hildanext.errors import ModelError
from hildanext.models.hardware import resident_memory, total_memory
from hildanext.models.kind import Footprint
from hildanext.models.load import choose_device, choose_dtype, kind_at, model_folder
from hildanext.registry import build

PARTS = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "kv",
    "rollout",
    "companions",
    "process",
    "heap",
)
FIRST_STEP = 48 * 2**20
HEAP, HEAP_BESIDE_ADAPTERS, HEAP_AMONG_GRADIENTS = 0.2, 0.65, 0.75
REMEDIES = (
    ("train", "gradient_checkpointing", True),
    ("train", "batch", 1),
    ("optimizer", "name", "adamw8bit"),
    ("optimizer", "freeze_embeddings", True),
    ("model.adapter", "kind", "lora"),
    ("model.adapter", "kind", "qlora"),
)


def _companions(config: Config, device: torch.device) -> dict[str, float]:
    objective: Objective = build("objectives", config.objective, "objective")
    dtype, _ = choose_dtype(config.model.dtype, device)
    plain = AdapterConfig()
    models = [
        config.model.model_copy(update={"path": str(model_folder(path, _field(objective, path))), "adapter": plain})
        for path in objective.companions
    ]
    if objective.compares_with_origin and config.model.adapter.kind == "none":
        models.append(config.model)
    held = [kind_at(model.path).footprint(model).weights(dtype) for model in models]
    return {"companions": sum(held)} if held else {}


def _field(objective: Objective, path: str) -> str:
    named = [name for name, value in vars(objective).items() if value == path]
    return f"objective.{named[0]}" if named else "objective"


def _around(config: Config, device: torch.device, parts: Mapping[str, float]) -> dict[str, float]:
    if device.type != "cpu":
        return {}
    objective: Objective = build("objectives", config.objective, "objective")
    several = config.train.accumulate * len(objective.passes) > 1
    taken = parts["activations"] + parts["logits"] + parts["gradients"]
    alone = HEAP if config.model.adapter.kind == "none" else HEAP_BESIDE_ADAPTERS
    share = HEAP_AMONG_GRADIENTS if several else alone
    return {"process": resident_memory() + FIRST_STEP, "heap": share * taken}


def estimate(
    config: Config,
    window: int,
    training: bool = True,
    ranks: int = 1,
    available: int | None = None,
    footprint: Footprint | None = None,
) -> dict[str, Any]:
    """Bytes per device that a run over rows of `window` tokens needs, by part, their total, the limit (max_vram_pct of
    `available`, default: the device's memory) and, where it does not fit, the settings that would. The worst block size
    of the ladder counts; ranks: ranks that share weights under FSDP2, which the objective's companions do not. In
    training on the CPU also what this process holds already and what the C heap keeps beside what is in use; `unsure`:
    the fall-back that the numbers stand on, in one line."""
    footprint = footprint or kind_at(config.model.path).footprint(config.model)
    device = choose_device(config.model.device)
    if available is None:
        cuda = device.type == "cuda"
        available = torch.cuda.get_device_properties(device).total_memory if cuda else total_memory()
    limit = config.model.max_vram_pct * available
    frozen = _companions(config, device) if training else {}
    needed = dict(footprint.training(config, window, ranks) if training else footprint.decoding(config, window))
    around = _around(config, device, needed) if training else {}
    parts = needed | frozen | around
    total = sum(parts.values())
    found: dict[str, Any] = {name: round(value) for name, value in parts.items()} | {"total": round(total)}
    found |= {"device": str(device), "available": available, "limit": round(limit), "fits": total <= limit}
    if training:
        found["unsure"] = footprint.unsure(config, window)
    if training and total > limit:
        found["remedies"] = _remedies(config, footprint, window, ranks, limit - sum(frozen.values()))
    return found


def _remedies(config: Config, footprint: Footprint, window: int, ranks: int, limit: float) -> list[str]:
    device = choose_device(config.model.device)

    def needed(tried: tuple[tuple[str, str, Any], ...]) -> float:
        parts = footprint.training(_changed(config, tried), window, ranks)
        return sum(parts.values()) + sum(_around(_changed(config, tried), device, parts).values())

    useful = [remedy for remedy in REMEDIES if _changed(config, (remedy,)) != config]
    for count in range(1, len(useful) + 1):
        fitting = [
            tried for tried in combinations(useful, count)
            if needed(tried) <= limit
        ]  # fmt: skip
        if fitting:
            return [" ".join(f"--set {place}.{key}={_written(value)}" for place, key, value in s) for s in fitting[:3]]
    return []


def _changed(config: Config, remedies: tuple[tuple[str, str, Any], ...]) -> Config:
    for place, key, value in remedies:
        section, _, child = place.partition(".")
        old = getattr(config, section)
        new = old.model_copy(update={key: value})
        if child:
            new = old.model_copy(update={child: getattr(old, child).model_copy(update={key: value})})
        config = config.model_copy(update={section: new})
    return config


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def require_memory(found: dict[str, Any]) -> None:
    """ModelError, naming the settings that would fit, where estimate() exceeds its limit."""
    if found["fits"]:
        return
    parts = ", ".join(f"{name} {found[name] / 2**30:.2f}" for name in PARTS if found.get(name))
    cure = " | ".join(found.get("remedies", ())) or "a smaller model or window, or another device"
    raise ModelError(
        f"memory: {found['total'] / 2**30:.2f} GiB needed on {found['device']} ({parts}), at most"
        f" {found['limit'] / 2**30:.2f} of {found['available'] / 2**30:.2f} GiB may be used (model.max_vram_pct);"
        f" would fit: {cure}"
    )
