# Training on the device: compiled FlexAttention against the dense mask, bfloat16 against float32, steps and memory.
# Entry points: attention, drift, steps, nf4.
# Each returns plain numbers; what is not possible here raises, and bench gpu writes down why.
"""Training measurements of the device benchmark."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hildanext.bench.device.sizes import Sizes, network_of, rows_of, seconds_of
from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.config.places import with_values
from hildanext.core.batches import document_batch
from hildanext.core.likelihood import autoregressive_nll
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch
from hildanext.models.denoiser import HFDenoiser, network
from hildanext.models.footprint import NetworkFootprint
from hildanext.models.hardware import peak_memory, restart_peak
from hildanext.models.load import load_model
from hildanext.models.lora import add_adapter
from hildanext.models.preflight import estimate
from hildanext.models.support import recompute
from hildanext.train.optim import build_optimizer
from hildanext.world import story

LAYERS = 2
STORIES = 8
LORA = {"model.adapter.kind": "lora", "model.adapter.rank": 16, "train.batch": 1}
RUNS: Mapping[str, Mapping[str, Any]] = {
    "all weights, bfloat16 autocast, checkpointing": {
        "train.batch": 4, "train.autocast": "bfloat16", "train.gradient_checkpointing": True,
    },
    "LoRA, float32, checkpointing": {**LORA, "train.gradient_checkpointing": True},
    "LoRA, bfloat16 weights": {**LORA, "model.dtype": "bfloat16"},
}  # fmt: skip


def attention(config: Config, sizes: Sizes, device: torch.device, form: str = "flex") -> dict[str, Any]:
    """By block size: seconds of a forward and backward of two layers with `form` and with the dense mask, over rows of
    three documents, and the largest difference of features and of gradients, relative to the largest entry."""
    model, batch, found = network_of(sizes, LAYERS), rows_of(sizes, 2, device), {}
    for block in sizes.blocks:
        timed, values = {}, {}
        for name in ("dense", form):
            denoiser = HFDenoiser(model, sizes.vocabulary - 1, attention=name).to(device).train()
            values[name] = _differentiated(denoiser, batch, block)
            timed[name] = seconds_of(partial(_differentiated, denoiser, batch, block), sizes.repeats, device)
        (own, *slopes), (other, *others) = values["dense"], values[form]
        found[f"block {block}"] = {
            "seconds": timed, "features": _apart([own], [other]), "gradients": _apart(slopes, others),
        }  # fmt: skip
    return found


def _apart(own: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    gap = max(float((one - other).abs().max()) for one, other in zip(own, others, strict=True))
    return gap / max(float(one.abs().max()) for one in own)


def _differentiated(denoiser: HFDenoiser, batch: Batch, block: int) -> list[Tensor]:
    denoiser.zero_grad()
    features = denoiser.noisy_features(batch.tokens, batch, block, batch.learn)
    features.square().mean().backward()  # type: ignore[no-untyped-call]
    return [features.detach(), *(one.grad.clone() for one in denoiser.parameters() if one.grad is not None)]


@torch.no_grad()
def drift(config: Config, sizes: Sizes, device: torch.device) -> dict[str, float]:
    """The bundled parent on stories in bfloat16 and in float32: nats per token of both, share of positions with the
    same likeliest token, largest difference of a logit."""
    logits, nats = {}, {}
    for dtype in ("float32", "bfloat16"):
        loaded = load_model(ModelConfig(path="tiny-parent", dtype=dtype, device=str(device)))
        texts = [" ".join(story(f"gpu:{number}").sentences) for number in range(STORIES)]
        ids = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        batch = document_batch([(one, 1) for one in ids], 0).to(device)
        found = autoregressive_nll(loaded.denoiser, batch)
        nats[dtype] = float(found.nats) / int(batch.learn.sum())
        features = loaded.denoiser.causal_features(batch, batch.learn)
        logits[dtype] = (features @ loaded.denoiser.head().T).float()
    same = logits["float32"].argmax(-1) == logits["bfloat16"].argmax(-1)
    apart = (logits["float32"] - logits["bfloat16"]).abs().max()
    return {
        "nats float32": nats["float32"], "nats bfloat16": nats["bfloat16"],
        "same likeliest token": float(same.float().mean()), "largest difference of a logit": float(apart),
    }  # fmt: skip


def steps(config: Config, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """By run of RUNS: seconds of an optimiser step, tokens/s, peak bytes, what the preflight foretells, their ratio."""
    found = {}
    for name, values in RUNS.items():
        said = with_values(config, {**values, "model.device": str(device), "ladder.fixed": sizes.blocks[-1]})
        with torch.device("meta"):
            footprint = NetworkFootprint.of_network(network_of(sizes))
        foretold = estimate(said, sizes.length, footprint=footprint)["total"]
        seconds, peak = _steps(said, sizes, device)
        tokens = said.train.batch * sizes.length
        found[name] = {"seconds": seconds, "tokens_per_second": tokens / seconds, "peak": peak,
                       "foretold": foretold, "peak of foretold": peak / foretold}  # fmt: skip
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def _steps(config: Config, sizes: Sizes, device: torch.device) -> tuple[float, int]:
    dtype = torch.float32 if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    restart_peak(device)
    denoiser = HFDenoiser(network_of(sizes).to(device, dtype), sizes.vocabulary - 1)
    if config.model.adapter.kind != "none":
        add_adapter(denoiser, config.model.adapter, config.seed)
    if config.train.gradient_checkpointing:
        recompute(denoiser.model)
    optimizer = build_optimizer(denoiser.train(), config.optimizer).optimizer
    objective, batch = MaskAndEdit(), rows_of(sizes, config.train.batch, device)
    rng = torch.Generator().manual_seed(0)

    def one() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.autocast != "none"):
            report = objective.loss(denoiser, batch, sizes.blocks[-1], rng)
        loss = report.total / report.normaliser.clamp(min=1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return seconds_of(one, sizes.repeats, device), peak_memory(device)


@torch.no_grad()
def nf4(config: Config, sizes: Sizes, device: torch.device) -> dict[str, float]:
    """The bundled parent in NF4 as QLoRA loads it: bytes of its weights, and nats per token of a story beside those in
    float32. ModelError without bitsandbytes."""
    found = {}
    text = " ".join(story("gpu:nf4").sentences)
    for kind in ("none", "qlora"):
        section = ModelConfig.model_validate(
            {"path": "tiny-parent", "dtype": "float32", "device": str(device), "adapter": {"kind": kind}}
        )
        loaded = load_model(section)
        ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        batch = document_batch([(ids, 1)], 0).to(device)
        held = network(loaded.denoiser)
        found[f"nats {kind}"] = float(autoregressive_nll(loaded.denoiser, batch).nats) / (len(ids) - 1)
        found[f"bytes {kind}"] = float(sum(one.numel() * one.element_size() for one in held.parameters()))
    return found
