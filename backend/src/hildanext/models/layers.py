# The layers of a network, watched: what each gave in the forwards inside a context.
# Entry points: layer_list, watching.
# The hooks keep references and compute nothing, and are gone before the backward pass, so gradient checkpointing
# recomputes a layer as if nobody had looked; the output that is kept is the next layer's input, held in any case.
"""Outputs of layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hildanext.errors import ModelError
from hildanext.models.support import text_config


def layer_list(network: Any) -> nn.ModuleList:
    """The decoder layers of a Hugging Face network. ModelError where it has no one list of them."""
    count = int(text_config(network.config).num_hidden_layers)
    found = [part for part in network.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if not found:
        raise ModelError(f"model: {network.config.model_type} has no list of {count} layers whose outputs can be read")
    return found[0]


@contextmanager
def watching(network: Any, numbers: Collection[int]) -> Iterator[Mapping[int, Tensor]]:
    """Inside, {number: output [B, Q, D]} of the layers `numbers`, counted from 1, as of the latest forward; before the
    network's last norm. ModelError for a number that no layer has."""
    layers, found = layer_list(network), dict[int, Tensor]()
    wrong = [number for number in numbers if not 1 <= number <= len(layers)]
    if wrong:
        raise ModelError(f"layers: there is no layer {wrong[0]}; this model has 1 to {len(layers)}")
    handles = [layers[number - 1].register_forward_hook(partial(_keep, found, number)) for number in numbers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep(found: dict[int, Tensor], number: int, layer: nn.Module, given: Any, output: Any) -> None:
    found[number] = output[0] if isinstance(output, tuple) else output
