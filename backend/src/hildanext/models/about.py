# What an objective is told of a loaded model: vocabulary, special ids, device, and how to get further models.
# Entry points: about.
# A second model is loaded like the first, in evaluation mode, and none of its weights train.
"""What `Objective.prepare` is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

from hildanext.config.model import ModelConfig
from hildanext.core.types import About, Denoiser
from hildanext.models.denoiser import network
from hildanext.models.load import Loaded, load_model
from hildanext.models.lora import has_adapter


def about(loaded: Loaded, model: ModelConfig) -> About:
    """The About of a loaded model; model: the settings (device, dtype, attention) a second one is loaded with."""
    tokenizer = loaded.tokenizer
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    denoiser = loaded.denoiser
    adapted = isinstance(denoiser, nn.Module) and has_adapter(denoiser)
    return About(
        vocabulary, tuple(tokenizer.all_special_ids), loaded.device, partial(_frozen, model),
        partial(_without_adapters, network(denoiser)) if adapted else None,
    )  # fmt: skip


def _frozen(model: ModelConfig, path: str) -> Denoiser:
    changes = {"path": path, "adapter": type(model.adapter)(), "mask_id": None, "shift": "auto"}
    settings = model.model_copy(update=changes)
    denoiser = load_model(settings).denoiser
    if isinstance(denoiser, nn.Module):
        denoiser.requires_grad_(False)
    return denoiser


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
