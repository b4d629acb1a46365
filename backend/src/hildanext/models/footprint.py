# The bytes of a Hugging Face network on one device, in training and in decoding, by formulas over its shape.
# Entry points: NetworkFootprint.
# The network is built without storage (meta device), so parameter counts are exact. Activations follow formulas for the
# families of FORMULAS and are traced for the others and under autocast, which keeps residuals in float32 and copies
# of the weights (models/shallow.py). A forward has 2L positions while the block is
# below the window L, else L; the backward of each pass of the objective runs before the next, so the widest one counts.
"""Memory of Hugging Face networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.core.head import chunk_rows
from hildanext.core.types import Objective, Pass
from hildanext.data.tokenizers import load_tokenizer
from hildanext.models.backend import capability, choose_backend
from hildanext.models.denoiser import position_bytes
from hildanext.models.experts import idle_parameters
from hildanext.models.files import skeleton
from hildanext.models.load import NEW, choose_device, choose_dtype, model_folder, new_tokenizer
from hildanext.models.mixer import mixers_of, pair_bytes
from hildanext.models.new import new_model
from hildanext.models.shallow import Forward, Kept, kept_bytes
from hildanext.models.shape import Shape
from hildanext.models.support import recurrent_layers
from hildanext.registry import build

FORMULAS = ("llama", "mistral", "qwen2", "qwen3")
OPTIMIZER_BYTES = {"adamw": 8, "muon": 8, "adamw8bit": 2, "lion8bit": 1}
QUANTISED_BYTES = {"qlora": 0.5 + 1 / 64 + 4 / 64 / 256, "lora8bit": 1.0}


@dataclass(frozen=True)
class NetworkFootprint:
    """Counts of parameters: all, of embedding and output matrix, of the other linear layers, and of their rank-one
    updates; pair: float32 bytes that recurrent layers keep of a text; idle: parameters of the experts that a token is
    not routed to; see models.kind.Footprint."""

    config: Any
    total: int
    embedding: int
    linear: int
    rank_one: int
    query_norm: bool
    gated: bool = True
    pair: int = 0
    idle: int = 0

    @classmethod
    def of(cls, model: ModelConfig) -> NetworkFootprint:
        """The counts of the network model.path names."""
        return cls.of_network(_skeleton(model))

    @classmethod
    def of_network(cls, network: Any) -> NetworkFootprint:
        """The counts of a network, which may be without storage."""
        output = network.get_output_embeddings()
        linears = [module for module in network.modules() if isinstance(module, nn.Linear) and module is not output]
        matrices = {id(weight): weight.numel() for weight in (network.get_input_embeddings().weight, output.weight)}
        return cls(
            network.config,
            sum(parameter.numel() for parameter in network.parameters()),
            sum(matrices.values()),
            sum(module.weight.numel() for module in linears),
            sum(module.in_features + module.out_features for module in linears),
            any("q_norm" in name for name, _ in network.named_parameters()),
            any("gate" in name for name, _ in network.named_parameters()),
            pair_bytes(mixers_of(network), torch.float32),
            idle_parameters(network),
        )

    def weights(self, dtype: torch.dtype) -> float:
        """Bytes of all parameters."""
        return float(self.total * dtype.itemsize)

    def copy_bytes(self, dtype: torch.dtype) -> float:
        """Bytes of a copy of a few layers in training, roughly: weights, gradients and moments of float32."""
        shape = Shape.of(self.config)
        return float(4 * dtype.itemsize * (self.embedding + 4 * (self.total - self.embedding) / shape.layers))

    def training(self, config: Config, window: int, ranks: int) -> dict[str, float]:
        """Bytes by part; ranks: ranks that share weights under FSDP2."""
        dtype, _ = choose_dtype(config.model.dtype, choose_device(config.model.device))
        size = 2 if config.train.autocast == "bfloat16" else dtype.itemsize
        share = config.train.shared_by(ranks)
        weights = {name: value / share for name, value in self._weights(config, dtype.itemsize).items()}
        objective: Objective = build("objectives", config.objective, "objective")
        widest = max(self._activations(config, window, one) for one in objective.passes) / config.train.pieces
        logits = max(self._head(config, window, size, one) for one in objective.passes)
        return weights | {"activations": widest, "logits": logits, "kv": 0.0}

    def unsure(self, config: Config, window: int) -> str:
        """That activations follow Llama's formulas, and why: torch could not trace this family."""
        device = choose_device(config.model.device)
        objective: Objective = build("objectives", config.objective, "objective")
        forwards = [forward for one in objective.passes for forward in self._forwards(config, window, one)]
        for found in (self._traced(forward, device) for forward in forwards):
            if isinstance(found, str):
                return (
                    f"memory: what {self.config.model_type} keeps for the backward pass follows the formulas of Llama,"
                    f" so it may be off; torch could not trace the network ({found})"
                )
        return ""

    def decoding(self, config: Config, window: int) -> dict[str, float]:
        """Bytes by part; keys and values at most decode.kv_bytes."""
        dtype, _ = choose_dtype(config.model.dtype, choose_device(config.model.device))
        shape, decode = Shape.of(self.config), config.decode
        position = position_bytes(self.config, dtype.itemsize)
        wide = shape.feed * 3 + shape.hidden * 4
        shared = 0 if self.pair else decode.cache * decode.prefix_bytes
        return {
            "parameters": float(self.total * dtype.itemsize), "gradients": 0.0, "optimizer": 0.0,
            "activations": float(decode.step_tokens * wide * dtype.itemsize),
            "logits": float(decode.requests * max(decode.block, 32) * shape.vocabulary * 4),
            "kv": float(min(decode.kv_bytes, decode.requests * (window * position + self.pair) + shared)),
        }  # fmt: skip

    def layer_bytes(self, length: int, block: int, backend: str, size: int) -> dict[str, float]:
        """Bytes one decoder layer keeps for the backward pass, for one row of `length` tokens: {"plain", "attention"}.
        size: bytes of an activation. Norms keep a float32 copy of their input when size is 2."""
        shape = Shape.of(self.config)
        heads, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        positions = length if block >= length else 2 * length
        norm = 3 * size if size >= 4 else 2 * size + 4
        per_token = 2 * norm * shape.hidden + 4 * size * heads + (4 if self.gated else 2) * size * shape.feed
        if self.query_norm:
            per_token += (norm - size) * (heads + keys)
        extra = 0.0
        if backend == "sliced" and block < length:
            extra = heads * size * (length * (length / block + 1) + positions)
        if backend == "math":
            extra = 2.0 * shape.heads * positions**2 * size
        return {"plain": float(per_token * positions), "attention": extra}

    def _weights(self, config: Config, size: int) -> dict[str, float]:
        adapter, optimizer = config.model.adapter, OPTIMIZER_BYTES[config.optimizer.name]
        if adapter.kind == "none":
            trained = self.total - (self.embedding if config.optimizer.freeze_embeddings else 0)
            return {"parameters": self.total * size, "gradients": trained * size, "optimizer": trained * optimizer}
        added = adapter.rank * self.rank_one
        stored = QUANTISED_BYTES.get(adapter.kind, size) * self.linear + size * (self.total - self.linear)
        return {"parameters": stored + 4 * added, "gradients": 4 * added, "optimizer": optimizer * added}

    def _head(self, config: Config, window: int, size: int, one: Pass) -> float:
        shape, trained = Shape.of(self.config), config.model.adapter.kind == "none"
        scored = round(config.train.batch * one.views * window * one.scored)
        rows = min(max(scored, 1), chunk_rows(shape.vocabulary))
        frozen = not trained or config.optimizer.freeze_embeddings
        matrices = (size < 4) + (not frozen)
        features = 3 * scored * shape.hidden * size
        return float((2 * 4 + (size if size < 4 else 0)) * rows * shape.vocabulary + features) + float(
            matrices * shape.vocabulary * shape.hidden * size
        )

    def _activations(self, config: Config, window: int, one: Pass) -> float:
        device, shape = choose_device(config.model.device), Shape.of(self.config)
        worst, apart = 0.0, bool(recurrent_layers(self.config))
        for forward in self._forwards(config, window, one):
            found, dense = self._kept(forward, device), forward.backend in ("dense", "math")
            beside = dense and forward.block < window and not apart
            rows = config.train.batch * (one.rows if beside else one.views)
            kept = found.total(rows, shape.layers)
            if config.train.gradient_checkpointing:
                positions = window if forward.block >= window else 2 * window
                kept = found.single(rows) + shape.layers * rows * positions * shape.hidden * forward.dtype.itemsize
                kept += found.once[1] * (shape.layers - 1) * (config.model.adapter.kind == "none")
            worst = max(worst, kept)
        return worst

    def _forwards(self, config: Config, window: int, one: Pass) -> Iterator[Forward]:
        device, ladder = choose_device(config.model.device), config.ladder
        level, (dtype, _) = capability(device), choose_dtype(config.model.dtype, device)
        narrow = config.train.autocast == "bfloat16" and dtype.itemsize > 2
        blocks = {block or window for block in (*ladder.warmup, *ladder.stable, ladder.decay_to)}
        blocks = blocks if ladder.fixed is None else {ladder.fixed or window}
        for block in {window if one.causal else min(block, window) for block in blocks}:
            name = choose_backend(config.model.attention, device, window, block).name
            kernel = "math" if name == "dense" and level is not None and level < (7, 0) else name
            grain = block if kernel == "sliced" or block == window or recurrent_layers(self.config) else 1
            yield Forward(window, grain, kernel, dtype, narrow)

    def _kept(self, forward: Forward, device: torch.device) -> Kept:
        traced = self._traced(forward, device)
        if isinstance(traced, Kept):
            return traced
        shape, length, size = Shape.of(self.config), forward.length, _size(forward)
        positions = length if forward.block >= length else 2 * length
        fixed = size * (positions**2 * (forward.backend == "dense") + 2 * positions * shape.hidden)
        return Kept((float(fixed), sum(self.layer_bytes(length, forward.block, forward.backend, size).values())))

    def _traced(self, forward: Forward, device: torch.device) -> Kept | str | None:
        if self.config.model_type in FORMULAS and not forward.autocast:
            return None
        if forward.backend in ("dense", "sliced"):
            return kept_bytes(self.config, forward, device)
        dense = kept_bytes(self.config, replace(forward, backend="dense"), device)
        if isinstance(dense, str):
            return dense
        shape, size = Shape.of(self.config), _size(forward)
        extra = self.layer_bytes(forward.length, forward.block, forward.backend, size)["attention"]
        return Kept((4.0 * size * forward.length * shape.hidden, dense.row[1] + extra), (0.0, dense.once[1]))


def _size(forward: Forward) -> int:
    return 2 if forward.autocast else forward.dtype.itemsize


def _skeleton(model: ModelConfig) -> Any:
    if model.path == NEW:
        rows = max(load_tokenizer(new_tokenizer(model)).get_vocab().values()) + 1
        with torch.device("meta"):
            return new_model(model.new, rows)
    return skeleton(model_folder(model.path), model.trust_remote_code)
