# A network with fewer layers: what one more layer keeps for the backward pass, and a copy small enough to be timed.
# Entry points: shallow, fewest_layers, kept_bytes (a Kept).
# Bytes come from a forward on fake tensors, which have shapes and no storage, so they hold for any family whose layers
# torch can trace; a mixture of experts is traced in bfloat16, the only dtype its grouped product has a shape for.
"""Shallow copies of a network."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from hildanext.core.masks import additive
from hildanext.models.backend import Backend, plan_diffusion
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.runs import Runs
from hildanext.models.support import BOTH, layer_kinds, recurrent_layers, text_config


@dataclass(frozen=True)
class Forward:
    """Rows whose kept bytes are asked for: tokens a row, block size, attention backend, dtype of weights, autocast."""

    length: int
    block: int
    backend: str
    dtype: torch.dtype
    autocast: bool = False


@dataclass(frozen=True)
class Kept:
    """Bytes a forward keeps for its backward, parameters left out: of every row, and once for all (autocast's copies
    of weights, a shared mask); each is (whatever the layers, for each layer). Where layers differ that is their mean,
    and widest holds (row, once) of the layer that keeps most."""

    row: tuple[float, float]
    once: tuple[float, float] = (0.0, 0.0)
    widest: tuple[float, float] = (0.0, 0.0)

    def total(self, rows: float, layers: int) -> float:
        """Bytes of `rows` rows through `layers` layers."""
        fixed, layer = (rows * row + once for row, once in zip(self.row, self.once, strict=True))
        return fixed + layers * layer

    def single(self, rows: float) -> float:
        """Bytes of `rows` rows through the layer that keeps most."""
        row, once = self.widest
        return self.total(rows, 0) + max(self.total(rows, 1) - self.total(rows, 0), rows * row + once)


def fewest_layers(config: Any) -> int:
    """Layers of the least copy whose last layer is like those that follow: one, or more where a family begins with
    layers of another kind; of a hybrid as many as its kinds of layers take to come round; a count."""
    held = text_config(config)
    if recurrent_layers(config):
        kinds = list(held.layer_types)
        periods = (n for n in range(1, len(kinds)) if all(one == kinds[i % n] for i, one in enumerate(kinds)))
        return next(periods, len(kinds))
    return min(int(held.num_hidden_layers), 1 + int(getattr(held, "first_k_dense_replace", 0) or 0))


def shallow(config: Any, layers: int, dtype: torch.dtype = torch.float32, kinds: Sequence[str] = ()) -> Any:
    """A network of the configuration with its first `layers` layers and random weights, on torch's default device;
    kinds: of its layers, where they are others than the first ones'."""
    from transformers import AutoModelForCausalLM

    made = copy.deepcopy(config)
    for held in {id(part): part for part in (made, text_config(made))}.values():
        old = getattr(held, "num_hidden_layers", None)
        for name, value in vars(held).items():
            # a list of numbers may be as long by chance: two limits, two layers
            if isinstance(value, list) and len(value) == old and not any(isinstance(one, float) for one in value):
                setattr(held, name, value[:layers])
        if old is not None:
            held.num_hidden_layers = layers
        if kinds and getattr(held, "layer_types", None):
            held.layer_types = list(kinds)
        if hasattr(held, "hybrid_layer_ids"):
            held.hybrid_layer_ids = [layer for layer, kind in enumerate(held.layer_types) if kind == BOTH]
    return AutoModelForCausalLM.from_config(made, dtype=dtype)


def kept_bytes(config: Any, forward: Forward, device: torch.device) -> Kept | str:
    """What forwards of one and of two rows keep; where torch cannot trace the network, what it said, in one line."""
    kind: type = type(config)
    return _kept(kind, json.dumps(config.to_dict(), sort_keys=True, default=str), forward, device)


@lru_cache(maxsize=64)
def _kept(kind: Any, text: str, forward: Forward, device: torch.device) -> Kept | str:
    config = kind.from_dict(json.loads(text))

    def traced(rows: int, layers: int, kinds: Sequence[str] = ()) -> float:
        network = partial(shallow, config, layers, kinds=kinds)
        return _traced(config, network, rows, forward, device)

    split = _of_kinds if recurrent_layers(config) and len(set(layer_kinds(config))) > 1 else _of_one_kind
    try:
        with _quiet():
            (fixed, layer, most), (fixed_two, layer_two, most_two) = (
                split(config, partial(traced, 1)),
                split(config, partial(traced, 2)),
            )
    except Exception as error:  # whatever a family's code does to tensors without storage
        said, *_ = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {said}"
    once = (2 * fixed - fixed_two, 2 * layer - layer_two)
    return Kept((fixed_two - fixed, layer_two - layer), once, (most_two - most, 2 * most - most_two))


def _of_one_kind(config: Any, traced: Callable[..., float]) -> tuple[float, float, float]:
    fewest = fewest_layers(config)
    less, more = (traced(layers) for layers in (fewest, fewest + 1))
    return less - fewest * (more - less), more - less, more - less


def _of_kinds(config: Any, traced: Callable[..., float]) -> tuple[float, float, float]:
    held = text_config(config)
    every, dense = list(held.layer_types), int(getattr(held, "num_dense_layers", 0) or 0)
    kinds = sorted(set(every)) * (1 + dense)
    base, least = traced(len(kinds), kinds), sorted(set(every))
    each = {kind: traced(len(kinds) + 1, [*kinds, kind]) - base for kind in least}
    fixed = base - sum(each[kind] for kind in kinds)
    return fixed, sum(each[kind] for kind in every) / len(every), max(each.values())


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    old, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = old


def _traced(config: Any, made: Callable[..., Any], rows: int, forward: Forward, device: torch.device) -> float:
    from torch._subclasses.fake_tensor import FakeTensorMode

    docs = torch.zeros(rows, forward.length, dtype=torch.long)
    mask, layout = plan_diffusion(Backend(forward.backend, ""), docs, forward.block, "global")
    experts = _has_experts(config)
    dtype = torch.bfloat16 if experts else forward.dtype
    positions = torch.arange(forward.length).repeat(rows, 1 if forward.block >= forward.length else 2)
    kept: dict[int, tuple[float, Tensor]] = {}
    whole = forward.block >= forward.length
    runs = Runs.causal(docs) if whole else Runs.diffusion(docs, forward.block, "global")

    def pack(tensor: Tensor) -> Tensor:
        storage, wide = tensor.untyped_storage(), experts and tensor.dtype == torch.bfloat16
        size = storage.nbytes() * (forward.dtype.itemsize / 2 if wide else 1)
        kept[storage._cdata] = (size, tensor)
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.device(device):
        network = made(dtype=dtype)
        denoiser = HFDenoiser(network, 0, attention=forward.backend).train()
        own = {weight.untyped_storage()._cdata for weight in network.parameters()}
        given = [mode.from_tensor(tensor).to(device) for tensor in (positions, additive(mask, dtype))]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _autocast(forward, device):
            denoiser.body(torch.zeros_like(given[0]), given[0], given[1], layout=layout, runs=runs)
    return float(sum(size for storage, (size, _) in kept.items() if storage not in own))


def _autocast(forward: Forward, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=forward.autocast)


def _has_experts(config: Any) -> bool:
    held = text_config(config)
    return any(getattr(held, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
