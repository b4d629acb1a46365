# What an objective is told of a loaded model: vocabulary, special ids, device, and how to get further models.
# Entry points: about.
# A second model is loaded like the first, in evaluation mode, and none of its weights train; it reads the same rows, so
# one with another tokenizer is refused.
"""What `Objective.prepare` is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from hildanext.config.model import ModelConfig
from hildanext.core.types import About, Denoiser
from hildanext.errors import ModelError
from hildanext.models.denoiser import network
from hildanext.models.load import NEW, Loaded, load_model, place
from hildanext.models.lora import has_adapter
from hildanext.models.meta import HildaMeta


def about(loaded: Loaded, model: ModelConfig) -> About:
    """The About of a loaded model; model: the settings (device, dtype, attention) a second one is loaded with."""
    tokenizer = loaded.tokenizer
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    denoiser = loaded.denoiser
    adapted = isinstance(denoiser, nn.Module) and has_adapter(denoiser)
    return About(
        vocabulary, tuple(tokenizer.all_special_ids), loaded.device, partial(_frozen, model, tokenizer),
        partial(_without_adapters, network(denoiser)) if adapted else None, _origin(model),
    )  # fmt: skip


def _origin(model: ModelConfig) -> str:
    if model.path == NEW:
        return ""
    meta = HildaMeta.read(place(model.path))
    return model.path if meta.block is None and meta.shift == "none" else ""


def _frozen(model: ModelConfig, tokenizer: Any, path: str) -> Denoiser:
    mask_id = model.mask_id if path == model.path else None
    changes = {"path": path, "adapter": type(model.adapter)(), "mask_id": mask_id, "shift": "auto"}
    loaded = load_model(model.model_copy(update=changes))
    _same_ids(path, _text_ids(loaded.tokenizer), _text_ids(tokenizer))
    if isinstance(loaded.denoiser, nn.Module):
        loaded.denoiser.requires_grad_(False)
    return loaded.denoiser


def _text_ids(tokenizer: Any) -> dict[str, int]:
    return {token: index for token, index in tokenizer.get_vocab().items() if token != tokenizer.mask_token}


def _same_ids(path: str, hers: Mapping[str, int], ours: Mapping[str, int]) -> None:
    other = next((token for token in (*ours, *hers) if hers.get(token) != ours.get(token)), None)
    if other is not None:
        raise ModelError(
            f"model {path}: {other!r} is id {hers.get(other)} of its tokenizer, {ours.get(other)} of the one in"
            " training: it cannot read the same rows; give one with the same tokenizer"
        )


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    training = model.training
    model.eval()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        model.train(training)
