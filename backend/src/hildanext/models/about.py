# What an objective is told of a loaded model: vocabulary, special ids, device, and how to get further models.
# Entry points: about, weights_hash.
# A second model is loaded like the first, in evaluation mode, and none of its weights train; it reads the same rows, so
# one with another tokenizer is refused, and so are rows on disk that another model or tokenizer wrote.
"""What `Objective.prepare` is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hildanext.config.model import ModelConfig
from hildanext.core.types import About, Denoiser, Kept
from hildanext.data.row_store import RowStore
from hildanext.data.tokenizers import tokenizer_hash
from hildanext.disk import fingerprints
from hildanext.errors import DataError, ModelError
from hildanext.models.denoiser import HFDenoiser, hugging_face, network
from hildanext.models.experts import routers_of, routing
from hildanext.models.layers import layer_list, watching
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
        len(layer_list(network(denoiser))) if isinstance(denoiser, HFDenoiser) else 0, partial(_watched, denoiser),
        partial(_kept, tokenizer), _routers(denoiser),
    )  # fmt: skip


def weights_hash(path: str) -> str:
    """SHA-256 over the weight files of a model folder and its config.json, by which kept rows know their model."""
    known = fingerprints(place(path))
    files = {name: one["sha256"] for name, one in known.items() if Path(name).suffix == ".safetensors"}
    files["config.json"] = known["config.json"]["sha256"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


@contextmanager
def _watched(own: Denoiser, model: Denoiser, numbers: Collection[int]) -> Iterator[Mapping[int, Tensor]]:
    # behind ranks the model in training is a wrapper around `own`
    watched = hugging_face(model if isinstance(model, HFDenoiser) else own)
    with watched.whole(), watching(watched.model, numbers) as found:
        yield found


def _routers(own: Denoiser) -> Callable[[Denoiser], AbstractContextManager[Mapping[int, tuple[Tensor, Tensor]]]] | None:
    if not isinstance(own, HFDenoiser) or not routers_of(own.model):
        return None
    return partial(_routed, own)


@contextmanager
def _routed(own: Denoiser, model: Denoiser) -> Iterator[Mapping[int, tuple[Tensor, Tensor]]]:
    watched = hugging_face(model if isinstance(model, HFDenoiser) else own)
    with watched.whole(), routing(watched.model) as found:
        yield found


def _kept(tokenizer: Any, kind: str, folder: str, path: str) -> Kept:
    store = RowStore.open(Path(folder).expanduser(), kind)
    given, own = str(store.facts.get("tokenizer_hash")), tokenizer_hash(tokenizer)
    if given != own:
        raise DataError(
            f"{folder}: its {kind} were made with tokenizer {given[:12]}, the model's is {own[:12]}; run"
            f" `hildanext {kind}` with this model's tokenizer and shards"
        )
    if path and store.facts.get("weights") != weights_hash(path):
        raise DataError(
            f"{folder}: its {kind} are those of another model than {path}; run `hildanext {kind}` on that one"
        )
    return store


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
