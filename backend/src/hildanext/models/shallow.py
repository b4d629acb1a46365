# A network with fewer layers: what one more layer keeps for the backward pass, and a copy small enough to be timed.
# Entry points: shallow, fewest_layers, kept_bytes (a Kept).
# Bytes come from a forward on fake tensors, which have shapes and no storage, so they hold for any family whose layers
# torch can trace; a mixture of experts is traced in bfloat16, the only dtype its grouped product has a shape for.
"""Shallow copies of a network."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hildanext.core.masks import additive
from hildanext.models.backend import Backend, plan_diffusion
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.support import text_config


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
    of weights, a shared mask); each is (whatever the layers, for each layer)."""

    row: tuple[float, float]
    once: tuple[float, float] = (0.0, 0.0)

    def total(self, rows: int, layers: int) -> float:
        """Bytes of `rows` rows through `layers` layers."""
        fixed, layer = (rows * row + once for row, once in zip(self.row, self.once, strict=True))
        return fixed + layers * layer


def fewest_layers(config: Any) -> int:
    """Layers of the least copy whose last layer is like those that follow: one, or more where a family begins with
    layers of another kind; a count."""
    held = text_config(config)
    return min(int(held.num_hidden_layers), 1 + int(getattr(held, "first_k_dense_replace", 0) or 0))


def shallow(config: Any, layers: int, dtype: torch.dtype = torch.float32) -> Any:
    """A network of the configuration with its first `layers` layers and random weights, on torch's default device."""
    from transformers import AutoModelForCausalLM

    made = copy.deepcopy(config)
    for held in {id(part): part for part in (made, text_config(made))}.values():
        old = getattr(held, "num_hidden_layers", None)
        for name, value in vars(held).items():
            if isinstance(value, list) and len(value) == old:
                setattr(held, name, value[:layers])
        if old is not None:
            held.num_hidden_layers = layers
    return AutoModelForCausalLM.from_config(made, dtype=dtype)


def kept_bytes(config: Any, forward: Forward, device: torch.device) -> Kept | str:
    """What forwards of one and of two rows keep; where torch cannot trace the network, what it said, in one line."""
    kind: type = type(config)
    return _kept(kind, json.dumps(config.to_dict(), sort_keys=True, default=str), forward, device)


@lru_cache(maxsize=64)
def _kept(kind: Any, text: str, forward: Forward, device: torch.device) -> Kept | str:
    config = kind.from_dict(json.loads(text))
    fewest = fewest_layers(config)

    def split(rows: int) -> tuple[float, float]:
        less, more = (_traced(config, layers, rows, forward, device) for layers in (fewest, fewest + 1))
        return less - fewest * (more - less), more - less

    try:
        with _quiet():
            (fixed, layer), (fixed_two, layer_two) = split(1), split(2)
    except Exception as error:  # whatever a family's code does to tensors without storage
        said, *_ = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {said}"
    return Kept((fixed_two - fixed, layer_two - layer), (2 * fixed - fixed_two, 2 * layer - layer_two))


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    old, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = old


def _traced(config: Any, layers: int, rows: int, forward: Forward, device: torch.device) -> float:
    from torch._subclasses.fake_tensor import FakeTensorMode

    docs = torch.zeros(rows, forward.length, dtype=torch.long)
    mask, layout = plan_diffusion(Backend(forward.backend, ""), docs, forward.block, "global")
    experts = _has_experts(config)
    dtype = torch.bfloat16 if experts else forward.dtype
    positions = torch.arange(forward.length).repeat(rows, 1 if forward.block >= forward.length else 2)
    kept: dict[int, tuple[float, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage, wide = tensor.untyped_storage(), experts and tensor.dtype == torch.bfloat16
        size = storage.nbytes() * (forward.dtype.itemsize / 2 if wide else 1)
        kept[storage._cdata] = (size, tensor)
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.device(device):
        network = shallow(config, layers, dtype)
        denoiser = HFDenoiser(network, 0, attention=forward.backend).train()
        own = {weight.untyped_storage()._cdata for weight in network.parameters()}
        given = [mode.from_tensor(tensor).to(device) for tensor in (positions, additive(mask, dtype))]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _autocast(forward, device):
            denoiser.body(torch.zeros_like(given[0]), given[0], given[1], layout=layout)
    return float(sum(size for storage, (size, _) in kept.items() if storage not in own))


def _autocast(forward: Forward, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=forward.autocast)


def _has_experts(config: Any) -> bool:
    held = text_config(config)
    return any(getattr(held, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
