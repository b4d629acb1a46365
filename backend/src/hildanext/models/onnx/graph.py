# One step of a block-diffusion denoiser as an ONNX graph: standard operators, opset 21, float32.
# Entry points: graph_of, OPSET, LOGITS, STATISTICS. docs/onnx.md documents the inputs and outputs.
# Keys and values of the past are read where they lie: their scores and those of the new positions meet in the softmax,
# so nothing of the past is copied and no head is repeated. The onnx package is imported only where a graph is made.
# Letters: B rows, Q positions of a row, P cells of the past, n positions read, V vocabulary, D head width.
"""ONNX graph of a Llama- or Qwen-shaped network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hildanext.core.head import EXCLUDED
from hildanext.models.onnx.step import Step

OPSET = 21
LOGITS = ("logits",)
STATISTICS = ("best", "probability", "entropy", "second")


@dataclass
class Graph:
    """Nodes and constants as they are added; widths: of the products' inputs, which weight quantisers ask for."""

    nodes: list[Any] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        """A named constant, float32 or int64."""
        held = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
        self.constants[name] = np.ascontiguousarray(held)
        return name

    def numbers(self, *values: int) -> str:
        """int64 constants, made once."""
        name = "i" + "_".join(map(str, values))
        return name if name in self.constants else self.constant(name, np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A float32 constant, made once."""
        name = f"f{value!r}"
        return name if name in self.constants else self.constant(name, np.array(value, np.float32))

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node with one output, named `output` or by its number; returns that name."""
        return self.split(operator, *inputs, outputs=(output or f"{operator}.{len(self.nodes)}",), **attributes)[0]

    def split(self, operator: str, *inputs: str, outputs: tuple[str, ...] | int, **attributes: Any) -> tuple[str, ...]:
        """A node with several outputs, named, or so many."""
        from onnx import helper

        number = len(self.nodes)
        names = outputs if isinstance(outputs, tuple) else tuple(f"{operator}.{number}.{i}" for i in range(outputs))
        self.nodes.append(
            helper.make_node(operator, list(inputs), list(names), name=f"{operator}{number}", **attributes)
        )
        return names

    def linear(self, name: str, value: str, *layers: Any) -> str:
        """value @ W.T + b of one linear layer, or of several side by side."""
        weight = torch.cat([layer.weight.detach().float() for layer in layers]).T
        self.widths[value] = int(weight.shape[0])
        product = self.add("MatMul", value, self.constant(f"{name}.weight", weight))
        if all(layer.bias is None for layer in layers):
            return product
        biases = [
            torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach().float() for layer in layers
        ]
        return self.add("Add", product, self.constant(f"{name}.bias", torch.cat(biases)))

    def rms_norm(self, name: str, value: str, norm: Any) -> str:
        """x / sqrt(mean(x^2) + eps) * w over the last axis."""
        epsilon = float(getattr(norm, "variance_epsilon", getattr(norm, "eps", None) or 1e-6))
        mean = self.add("ReduceMean", self.add("Pow", value, self.scalar(2.0)), self.numbers(-1), keepdims=1)
        root = self.add("Sqrt", self.add("Add", mean, self.scalar(epsilon)))
        return self.add("Mul", self.add("Div", value, root), self.constant(f"{name}.weight", norm.weight))


@dataclass(frozen=True)
class Shared:
    """Names of what every layer reads: cosines and sines [B, Q, 1, D/2], bias [B, 1, G Q, P + Q], sizes (P, Q)."""

    cosine: str
    sine: str
    bias: str
    sizes: str


def graph_of(step: Step, outputs: tuple[str, ...], mask_id: int, tied: bool) -> Any:
    """The ModelProto. outputs: LOGITS, or STATISTICS of the distribution without [MASK]; tied: one matrix for
    embedding and head, which onnxruntime's weight quantisers leave in float32."""
    graph, body = Graph(), step.network.base_model
    embedding = body.embed_tokens.weight
    value = graph.add("Gather", graph.constant("embedding", embedding), "tokens")
    shared = _shared(graph, step)
    for index, layer in enumerate(step.layers):
        value = _layer(graph, step, shared, index, layer, value)
    flat = graph.add("Reshape", value, graph.numbers(-1, int(embedding.shape[1])))
    hidden = graph.rms_norm("norm", graph.add("Gather", flat, "read"), body.norm)
    if tied and step.head.data_ptr() == embedding.data_ptr():
        graph.add("Gemm", hidden, "embedding", output="logits", transB=1)
    else:
        graph.add("MatMul", hidden, graph.constant("head", step.head.T), output="logits")
    if outputs == STATISTICS:
        _statistics(graph, mask_id, int(step.head.shape[0]))
    return _model(graph, step, outputs)


def _shared(graph: Graph, step: Step) -> Shared:
    rotary = step.network.base_model.rotary_emb
    scale = float(getattr(rotary, "attention_scaling", 1.0))
    places = graph.add("Cast", graph.add("Unsqueeze", "positions", graph.numbers(2, 3)), to=1)
    angles = graph.add("Mul", places, graph.constant("frequencies", rotary.inv_freq))
    cosine, sine = (
        part if scale == 1.0 else graph.add("Mul", part, graph.scalar(scale))
        for part in (graph.add("Cos", angles), graph.add("Sin", angles))
    )
    hidden = graph.add("Where", "mask", graph.scalar(0.0), graph.scalar(EXCLUDED))
    bias = graph.add("Unsqueeze", hidden, graph.numbers(1))
    groups = step.heads // step.kv_heads
    bias = graph.add("Concat", *[bias] * groups, axis=2) if groups > 1 else bias
    past = graph.add("Shape", "past_key.0", start=2, end=3)
    sizes = graph.add("Concat", past, graph.add("Shape", "tokens", start=1, end=2), axis=0)
    return Shared(cosine, sine, bias, sizes)


def _layer(graph: Graph, step: Step, shared: Shared, index: int, layer: Any, value: str) -> str:
    name, attention, feed = f"layers.{index}", layer.self_attn, layer.mlp
    normed = graph.rms_norm(f"{name}.input_layernorm", value, layer.input_layernorm)
    mixed = _attention(graph, step, shared, index, attention, normed)
    value = graph.add("Add", value, graph.linear(f"{name}.o", mixed, attention.o_proj))
    normed = graph.rms_norm(f"{name}.post_attention_layernorm", value, layer.post_attention_layernorm)
    both = graph.linear(f"{name}.gate_up", normed, feed.gate_proj, feed.up_proj)
    gate, up = graph.split("Split", both, outputs=2, axis=-1, num_outputs=2)
    gated = graph.add("Mul", graph.add("Mul", gate, graph.add("Sigmoid", gate)), up)
    return graph.add("Add", value, graph.linear(f"{name}.down", gated, feed.down_proj))


def _attention(graph: Graph, step: Step, shared: Shared, index: int, attention: Any, value: str) -> str:
    name, heads, kv, width = f"layers.{index}", step.heads, step.kv_heads, step.head_dim
    joined = graph.linear(f"{name}.qkv", value, attention.q_proj, attention.k_proj, attention.v_proj)
    joined = graph.add("Reshape", joined, graph.numbers(0, 0, heads + 2 * kv, width))
    query, key, new = graph.split("Split", joined, graph.numbers(heads, kv, kv), outputs=3, axis=2)
    if hasattr(attention, "q_norm"):
        query = graph.rms_norm(f"{name}.q_norm", query, attention.q_norm)
        key = graph.rms_norm(f"{name}.k_norm", key, attention.k_norm)
    turned = _rotated(graph, shared, graph.add("Concat", query, key, axis=2))
    query, key = graph.split("Split", turned, graph.numbers(heads, kv), outputs=2, axis=2)
    order = [0, 2, 1, 3]
    key = graph.add("Transpose", key, perm=order, output=f"key.{index}")
    new = graph.add("Transpose", new, perm=order, output=f"value.{index}")
    query = graph.add("Mul", query, graph.scalar(float(attention.scaling)))
    query = graph.add("Transpose", query, perm=order)
    query = graph.add("Reshape", query, graph.numbers(0, kv, -1, width))

    scores = [
        graph.add("MatMul", query, graph.add("Transpose", held, perm=[0, 1, 3, 2]))
        for held in (f"past_key.{index}", key)
    ]
    shares = graph.add("Softmax", graph.add("Add", graph.add("Concat", *scores, axis=-1), shared.bias), axis=-1)
    before, now = graph.split("Split", shares, shared.sizes, outputs=2, axis=-1)
    seen = graph.add("Add", graph.add("MatMul", before, f"past_value.{index}"), graph.add("MatMul", now, new))
    seen = graph.add("Reshape", seen, graph.numbers(0, heads, -1, width))
    return graph.add("Reshape", graph.add("Transpose", seen, perm=order), graph.numbers(0, 0, -1))


def _rotated(graph: Graph, shared: Shared, value: str) -> str:
    first, second = graph.split("Split", value, outputs=2, axis=-1, num_outputs=2)
    turned = [
        graph.add(sign, graph.add("Mul", one, shared.cosine), graph.add("Mul", other, shared.sine))
        for sign, one, other in (("Sub", first, second), ("Add", second, first))
    ]
    return graph.add("Concat", *turned, axis=-1)


def _statistics(graph: Graph, mask_id: int, vocabulary: int) -> None:
    without = np.zeros(vocabulary, np.float32)
    without[mask_id] = EXCLUDED
    scores = graph.add("Add", "logits", graph.constant("without_mask", without))
    total = graph.add("ReduceLogSumExp", scores, graph.numbers(-1), keepdims=1)
    logs = graph.add("Sub", scores, total)
    floor = graph.add("Max", logs, graph.scalar(-1e4))
    mean = graph.add("ReduceSum", graph.add("Mul", graph.add("Exp", logs), floor), graph.numbers(-1), keepdims=0)
    graph.add("Neg", mean, output="entropy")
    values, tokens = graph.split("TopK", logs, graph.numbers(2), outputs=2, axis=-1, largest=1, sorted=1)
    likely = graph.split("Split", graph.add("Exp", values), outputs=2, axis=-1, num_outputs=2)
    order = graph.split("Split", tokens, outputs=2, axis=-1, num_outputs=2)
    for name, found in (("probability", likely[0]), ("second", likely[1]), ("best", order[0])):
        graph.add("Squeeze", found, graph.numbers(1), output=name)


def _model(graph: Graph, step: Step, outputs: tuple[str, ...]) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"tokens": TensorProto.INT64, "positions": TensorProto.INT64, "read": TensorProto.INT64}
    kinds |= {"mask": TensorProto.BOOL, "best": TensorProto.INT64}
    wanted = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
        for name, shape in _signature(step, outputs)
    ]
    count = next(index for index, value in enumerate(wanted) if value.name == outputs[0])
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    known = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "Q", width])
        for name, width in graph.widths.items()
    ]
    made = helper.make_graph(graph.nodes, "step", wanted[:count], wanted[count:], constants, value_info=known)
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="hildanext"
    )


def _signature(step: Step, outputs: tuple[str, ...]) -> Iterator[tuple[str, list[Any]]]:
    layers, held = range(len(step.layers)), ["B", step.kv_heads, "P", step.head_dim]
    yield from (("tokens", ["B", "Q"]), ("positions", ["B", "Q"]), ("mask", ["B", "Q", "K"]), ("read", ["n"]))
    for index in layers:
        yield from ((f"past_key.{index}", held), (f"past_value.{index}", held))
    yield from ((name, ["n", int(step.head.shape[0])] if name == "logits" else ["n"]) for name in outputs)
    new = ["B", step.kv_heads, "Q", step.head_dim]
    for index in layers:
        yield from ((f"key.{index}", new), (f"value.{index}", new))
