# Tiny networks of hybrid families, and what transformers' own code says of them: the oracle of packed training.
# Entry points: HYBRIDS, hybrid (a random network), Own (its untouched twin), block_by_block, text_by_text.
# Own runs whole texts from their beginning through transformers' modules; nothing of the package takes part.
"""Material of the tests of recurrent layers."""

from __future__ import annotations

from typing import Any

import torch
from models.families import SHAPE, network
from torch import Tensor

from hildanext.core.types import Batch

DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
CONV: dict[str, Any] = {"layer_types": ["conv", "full_attention", "conv"]}
SPACE: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
WIDTHS: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": CONV | {"block_auto_adjust_ff_dim": False}, "lfm2_moe": CONV | {"num_dense_layers": 1}, "lfm3": CONV,
    "qwen3_next": DELTA, "qwen3_5_text": DELTA, "qwen3_5_moe_text": DELTA, "olmo_hybrid": DELTA,
    "granitemoehybrid": SPACE | WIDTHS | {"shared_intermediate_size": 24, "residual_multiplier": 0.7},
    "nemotron_h": {
        "layer_types": ["linear_attention", "full_attention", "moe", "linear_attention"], "num_hidden_layers": 4,
        "ssm_state_size": 8, "chunk_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2,
        "time_step_min": 0.3, "moe_shared_expert_intermediate_size": 16,
    },
    "falcon_h1": WIDTHS | {
        "num_hidden_layers": 2, "mamba_d_ssm": 64, "key_multiplier": 0.5,
        "ssm_in_multiplier": 0.8, "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "num_hidden_layers": 4,
        "mamba_d_state": 8, "chunk_size": 8, "n_mamba_heads": 4, "mamba_headdim": 16, "mamba_ngroups": 2,
        "use_mem_rope": True, "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4,
        "num_mem_blocks": 1, "use_shared_attention_adapter": False, "adapter_rank": 4,
    },
}  # fmt: skip


def configuration(family: str, **changes: Any) -> Any:
    """A tiny configuration of a hybrid family."""
    from transformers import AutoConfig

    plain = AutoConfig.for_model(family)
    known = {*plain.to_dict(), *plain.attribute_map}
    values = {name: value for name, value in SHAPE.items() if name in known}
    return type(plain)(**(values | {"num_hidden_layers": 3} | HYBRIDS[family] | changes))


def hybrid(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random network of the family, in evaluation mode."""
    return network(configuration(family, **changes), seed)


class Own:
    """transformers' own forward over whole texts; attention_mask [1, 1, Q, Q] additive for the attention layers, while
    recurrent layers read from left to right."""

    def __init__(self, family: str, seed: int = 0, **changes: Any) -> None:
        self.model = hybrid(family, seed, **changes)
        self.kinds = {"linear_attention", "full_attention", *self.model.config.layer_types}

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **given: Any) -> Any:
        own = attention_mask.to(self.model.dtype)
        masks = {kind: own if kind == "full_attention" else None for kind in self.kinds}
        return self.model(input_ids=input_ids, attention_mask=masks, **given)


@torch.no_grad()
def _logits(own: Own, tokens: list[int], blocks: list[int]) -> Tensor:
    unseen = torch.tensor([[float("-inf") if key > query else 0.0 for key in blocks] for query in blocks])
    logits: Tensor = own(torch.tensor([tokens]), unseen[None, None], use_cache=False).logits[0]
    return logits


def block_by_block(own: Own, noisy: Tensor, data: Batch, block: int, grid: str = "global") -> Tensor:
    """Logits [B, L, V]: every noised block (or group of blocks) in a forward of its own, behind its document's clean
    text; block 0: every document as one block."""
    found = torch.zeros(*data.tokens.shape, own.model.config.vocab_size, dtype=own.model.dtype)
    for row in range(len(data.tokens)):
        docs, clean, noised = data.docs[row].tolist(), data.tokens[row].tolist(), noisy[row].tolist()
        begins = [docs.index(doc) for doc in docs]
        ids = [(i - (begins[i] if grid == "per_document" else 0)) // block if block else 0 for i in range(len(docs))]
        groups = ids if data.groups is None else data.groups[row].tolist()
        for start in range(len(docs)):
            if start and (docs[start], groups[start]) == (docs[start - 1], groups[start - 1]):
                continue
            same = [i for i in range(start, len(docs)) if (docs[i], groups[i]) == (docs[start], groups[start])]
            first, stop = begins[start], same[-1] + 1
            logits = _logits(own, clean[first:start] + noised[start:stop], ids[first:stop])
            found[row, start:stop] = logits[start - first :]
    return found


def text_by_text(own: Own, data: Batch) -> Tensor:
    """Logits [B, L, V] of the AR model, every document in a forward of its own."""
    return block_by_block(own, data.tokens, data, 1)
