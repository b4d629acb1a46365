# Which networks can be written as a graph, told by the parts they are made of.
# Entry points: Step (Step.of refuses what it does not know).
# A family whose parts have these names and compute something else is found by comparing logits (folder.py).
"""Networks that export to ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hildanext.errors import ModelError

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
NORMS = {"q_norm", "k_norm"}
FEED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True)
class Step:
    """A network of embedding, pre-normalised layers (rotary attention, gated SiLU) and output matrix, with the counts
    and widths its graph needs."""

    network: Any
    head: Tensor
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, network: Any, head: Tensor) -> Step:
        """The step of a Hugging Face causal LM. ModelError, in one line, for one whose parts are others."""
        body = network.base_model
        found = _others(body, {"embed_tokens", "layers", "norm", "rotary_emb"}, "model")
        layers = list(getattr(body, "layers", ()))
        found = found or next((wrong for layer in layers if (wrong := _unlike(layer))), "")
        if found or not layers:
            raise ModelError(
                f"export onnx: {network.config.model_type} does not export ({found or 'no layers'}); Llama- and"
                " Qwen-shaped networks do"
            )
        attention = layers[0].self_attn
        width = int(attention.head_dim)
        sizes = (int(attention.q_proj.out_features) // width, int(attention.k_proj.out_features) // width, width)
        return cls(network, head.detach(), *sizes)

    @property
    def layers(self) -> list[Any]:
        """Its layers."""
        return list(self.network.base_model.layers)


def _others(module: nn.Module, wanted: set[str], place: str, optional: frozenset[str] = frozenset()) -> str:
    named = {name for name, _ in module.named_children()}
    return f"{place} is made of {', '.join(sorted(named))}" if (named ^ wanted) - optional else ""


def _unlike(layer: Any) -> str:
    if wrong := _others(layer, LAYER, "a layer"):
        return wrong
    if wrong := _others(layer.self_attn, ATTENTION, "attention", frozenset(NORMS)):
        return wrong
    if wrong := _others(layer.mlp, FEED, "the feed-forward part"):
        return wrong
    linear = [layer.self_attn.get_submodule(name) for name in sorted(ATTENTION)]
    linear += [layer.mlp.get_submodule(name) for name in sorted(FEED - {"act_fn"})]
    if any(type(one) is not nn.Linear for one in linear):
        return "its linear layers are quantised or carry adapters"
    probe = torch.linspace(-3.0, 3.0, 7)
    return "" if torch.allclose(layer.mlp.act_fn(probe), nn.functional.silu(probe)) else "the gate is no SiLU"
