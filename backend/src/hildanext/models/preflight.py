# How much memory a run needs on one device, before anything is loaded, and which settings would fit.
# Entry points: estimate, require_memory.
# The network is built without storage (meta device), so parameter counts are exact; activations follow formulas.
# A forward has 2L positions while the block is below the window L, else L.
"""Memory preflight."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn

from hildanext.config import Config
from hildanext.errors import ModelError
from hildanext.models.backend import capability, choose_backend
from hildanext.models.hardware import total_memory
from hildanext.models.load import NEW, choose_device, choose_dtype, load_tokenizer, model_folder
from hildanext.models.new import new_model

OPTIMIZER_BYTES = {"adamw": 8, "muon": 8, "adamw8bit": 2, "lion8bit": 1}
QUANTISED_BYTES = {"qlora": 0.5 + 1 / 64 + 4 / 64 / 256, "lora8bit": 1.0}
CHUNK_BYTES = 2 * 2**24 * 4
REMEDIES = (
    ("train", "gradient_checkpointing", True),
    ("train", "batch", 1),
    ("optimizer", "name", "adamw8bit"),
    ("optimizer", "freeze_embeddings", True),
    ("model.adapter", "kind", "lora"),
    ("model.adapter", "kind", "qlora"),
)


@dataclass(frozen=True)
class _Network:
    config: Any
    total: int
    embedding: int
    linear: int
    rank_one: int
    tied: bool
    query_norm: bool


def _network(config: Config) -> _Network:
    model = _skeleton(config)
    output = model.get_output_embeddings()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not output]
    matrices = {id(weight): weight.numel() for weight in (model.get_input_embeddings().weight, output.weight)}
    return _Network(
        model.config,
        sum(parameter.numel() for parameter in model.parameters()),
        sum(matrices.values()),
        sum(module.weight.numel() for module in linears),
        sum(module.in_features + module.out_features for module in linears),
        len(matrices) == 1,
        any("q_norm" in name for name, _ in model.named_parameters()),
    )


def _skeleton(config: Config) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if config.model.path == NEW:
        rows = max(load_tokenizer(config.model.new.tokenizer).get_vocab().values()) + 1
        with torch.device("meta"):
            return new_model(config.model.new, rows)
    settings = AutoConfig.from_pretrained(model_folder(config.model.path), local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings)


def _weights(config: Config, network: _Network, size: int) -> dict[str, float]:
    adapter, optimizer = config.model.adapter, OPTIMIZER_BYTES[config.optimizer.name]
    if adapter.kind == "none":
        trained = network.total - (network.embedding if config.optimizer.freeze_embeddings else 0)
        return {"parameters": network.total * size, "gradients": trained * size, "optimizer": trained * optimizer}
    added = adapter.rank * network.rank_one
    stored = QUANTISED_BYTES.get(adapter.kind, size) * network.linear + size * (network.total - network.linear)
    return {"parameters": stored + 4 * added, "gradients": 4 * added, "optimizer": optimizer * added}


def layer_bytes(network: Any, length: int, block: int, backend: str, size: int) -> dict[str, float]:
    """Bytes one decoder layer keeps for the backward pass, for one row of `length` tokens: {"plain", "attention"}.
    size: bytes of an activation. Norms keep a float32 copy of their input when size is 2."""
    config = network.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    feed = getattr(config, "moe_intermediate_size", 0) * getattr(config, "num_experts_per_tok", 0)
    positions = length if block >= length else 2 * length
    norm = 3 * size if size >= 4 else 2 * size + 4
    per_token = 2 * norm * config.hidden_size + 4 * size * heads + 4 * size * (feed or config.intermediate_size)
    if network.query_norm:
        per_token += (norm - size) * (heads + keys)
    extra = 0.0
    if backend == "sliced" and block < length:
        extra = heads * size * (length * (length / block + 1) + positions)
    if backend == "math":
        extra = 2.0 * config.num_attention_heads * positions**2 * size
    return {"plain": float(per_token * positions), "attention": extra}


def _activations(config: Config, network: _Network, window: int, size: int) -> float:
    device = choose_device(config.model.device)
    level = capability(device)
    blocks = {block or window for block in (*config.ladder.warmup, *config.ladder.stable, config.ladder.decay_to)}
    worst = 0.0
    for block in {min(block, window) for block in blocks}:
        name = choose_backend(config.model.attention, device, window, block).name
        kernel = "math" if name == "dense" and level is not None and level < (7, 0) else name
        layer = sum(layer_bytes(network, window, block, kernel, size).values())
        positions = window if block >= window else 2 * window
        shared = size * (positions**2 * (name == "dense") + 2 * positions * network.config.hidden_size)
        layers = network.config.num_hidden_layers
        kept = layer * layers
        if config.train.gradient_checkpointing:
            kept = layer + layers * positions * network.config.hidden_size * size
        worst = max(worst, kept + shared)
    return worst * config.train.batch


def _training(config: Config, network: _Network, window: int, ranks: int) -> dict[str, float]:
    dtype, _ = choose_dtype(config.model.dtype, choose_device(config.model.device))
    size = 2 if config.train.autocast == "bfloat16" else dtype.itemsize
    share = ranks if config.train.parallel == "fsdp2" else 1
    weights = {name: value / share for name, value in _weights(config, network, dtype.itemsize).items()}
    head = network.config.vocab_size * network.config.hidden_size * dtype.itemsize
    logits = max(CHUNK_BYTES, 2 * 16 * network.config.vocab_size * 4) + head
    return weights | {"activations": _activations(config, network, window, size), "logits": float(logits), "kv": 0.0}


def _decoding(config: Config, network: _Network, window: int) -> dict[str, float]:
    dtype, _ = choose_dtype(config.model.dtype, choose_device(config.model.device))
    shape, decode = network.config, config.decode
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    position = 2 * shape.num_hidden_layers * shape.num_key_value_heads * width * dtype.itemsize
    wide = shape.intermediate_size * 3 + shape.hidden_size * 4
    return {
        "parameters": float(network.total * dtype.itemsize), "gradients": 0.0, "optimizer": 0.0,
        "activations": float(decode.step_tokens * wide * dtype.itemsize),
        "logits": float(decode.requests * max(decode.block, 32) * shape.vocab_size * 4),
        "kv": float(min(decode.kv_bytes, decode.requests * window * position)),
    }  # fmt: skip


def estimate(
    config: Config, window: int, training: bool = True, ranks: int = 1, available: int | None = None
) -> dict[str, Any]:
    """Bytes per device that a run over rows of `window` tokens needs, by part, their total, the limit (max_vram_pct of
    `available`, default: the device's memory) and, where it does not fit, the settings that would. The worst block size
    of the ladder counts; ranks: ranks that share weights under FSDP2."""
    network, device = _network(config), choose_device(config.model.device)
    if available is None:
        cuda = device.type == "cuda"
        available = torch.cuda.get_device_properties(device).total_memory if cuda else total_memory()
    limit = config.model.max_vram_pct * available
    parts = _training(config, network, window, ranks) if training else _decoding(config, network, window)
    total = sum(parts.values())
    found: dict[str, Any] = {name: round(value) for name, value in parts.items()} | {"total": round(total)}
    found |= {"device": str(device), "available": available, "limit": round(limit), "fits": total <= limit}
    if training and total > limit:
        found["remedies"] = _remedies(config, network, window, ranks, limit)
    return found


def _remedies(config: Config, network: _Network, window: int, ranks: int, limit: float) -> list[str]:  # fmt: skip
    useful = [remedy for remedy in REMEDIES if _changed(config, (remedy,)) != config]
    for count in range(1, len(useful) + 1):
        fitting = [
            tried for tried in combinations(useful, count)
            if sum(_training(_changed(config, tried), network, window, ranks).values()) <= limit
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
    names = ("parameters", "gradients", "optimizer", "activations", "logits", "kv")
    parts = ", ".join(f"{name} {found[name] / 2**30:.2f}" for name in names if found[name])
    cure = " | ".join(found.get("remedies", ())) or "a smaller model or window, or another device"
    raise ModelError(
        f"memory: {found['total'] / 2**30:.2f} GiB needed on {found['device']} ({parts}), at most"
        f" {found['limit'] / 2**30:.2f} of {found['available'] / 2**30:.2f} GiB may be used (model.max_vram_pct);"
        f" would fit: {cure}"
    )
