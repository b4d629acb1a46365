# An independent view of a model: transformers' eager attention with an additive mask written entry by entry.
# Entry points: plain, logits, visibility, batch, noised.
# Nothing here uses the package's masks or its attention function.
"""Oracle shared by the tests of models/."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from hildanext.core.types import Batch

FAMILIES = ("qwen3", "qwen2", "llama", "mistral", "qwen3_moe")
MASK = 66


def plain(model: Any, implementation: str = "sdpa") -> Any:
    """A copy of a Hugging Face model with transformers' own attention."""
    other = copy.deepcopy(model)
    other.set_attn_implementation(implementation)
    return other


def portable(model: Any) -> Any:
    """The model with expert layers that run in float64."""
    if "moe" in model.config.model_type:
        model.set_experts_implementation("eager")
    return model


def visibility(docs: list[int], clean: list[bool], blocks: list[int]) -> Tensor:
    """[1, 1, Q, Q] bool from the words of the definition, entry by entry."""
    size = len(docs)
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    for query in range(size):
        for key in range(size):
            if docs[query] != docs[key]:
                continue
            if clean[key]:
                mask[0, 0, query, key] = blocks[key] < blocks[query] or (clean[query] and blocks[key] == blocks[query])
            else:
                mask[0, 0, query, key] = not clean[query] and blocks[key] == blocks[query]
    return mask


@torch.no_grad()
def logits(model: Any, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Logits [1, Q, V] of a plain model under a bool mask, passed as the additive mask eager attention needs."""
    additive = torch.zeros(mask.shape, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
    found: Tensor = model(input_ids=tokens, position_ids=positions, attention_mask=additive, use_cache=False).logits
    return found


def batch(rows: int = 1, length: int = 12, seed: int = 0, documents: bool = False, vocabulary: int = 60) -> Batch:
    """Random tokens below the mask id; with `documents`, each row is cut at random places."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (rows, length), generator=rng)
    docs = torch.zeros_like(tokens)
    if documents:
        docs = (torch.rand(rows, length, generator=rng) < 0.25).long().cumsum(1)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), docs)


def noised(data: Batch, seed: int = 1, mask_id: int = MASK) -> Tensor:
    """x_t: half of the tokens masked, a tenth replaced."""
    rng = torch.Generator().manual_seed(seed)
    draw = torch.rand(data.tokens.shape, generator=rng)
    other = torch.randint(0, 60, data.tokens.shape, generator=rng)
    return torch.where(draw < 0.5, mask_id, torch.where(draw < 0.6, other, data.tokens))
