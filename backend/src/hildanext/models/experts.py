# The routers of a mixture of experts, watched: what each said of every position in the forwards inside a context.
# Entry points: routers_of, routing, idle_parameters.
# transformers names the class of a family's routers for its own records; they give logits, weights and chosen experts.
# The hooks keep references and compute nothing, and are gone before the backward pass.
"""Routers of networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hildanext.models.layers import layer_list
from hildanext.models.support import text_config

RECORD = "router_logits"


def routers_of(network: Any) -> list[tuple[int, nn.Module]]:
    """(layer, router) of every layer with experts, layers counted from 1; empty: a network without experts."""
    named = [getattr(part, "_can_record_outputs", None) or {} for part in network.modules()]
    kinds = {one[RECORD].target_class for one in named if RECORD in one}
    if not kinds:
        return []
    layers = enumerate(layer_list(network), 1)
    return [(number, part) for number, layer in layers for part in layer.modules() if type(part) in kinds]


def idle_parameters(network: Any) -> int:
    """Parameters of the experts, held in one tensor a matrix, to which a token is not routed."""
    chosen = getattr(text_config(network.config), "num_experts_per_tok", None) or 0
    packed = [p for name, p in network.named_parameters() if ".experts." in name and p.dim() == 3]
    return sum(weight.numel() // len(weight) * max(0, len(weight) - chosen) for weight in packed)


@contextmanager
def routing(network: Any) -> Iterator[Mapping[int, tuple[Tensor, Tensor]]]:
    """Inside, {layer: (logits [N, E] before the softmax, chosen experts [N, k] int64)} of the latest forward, N = B T
    positions in its order."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    handles = [part.register_forward_hook(partial(_keep, found, number)) for number, part in routers_of(network)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep(found: dict[int, tuple[Tensor, Tensor]], number: int, router: nn.Module, given: Any, output: Any) -> None:
    found[number] = (output[0], output[2])
