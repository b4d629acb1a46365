# A fresh Qwen3 model with random weights, for parents trained from scratch and for tests.
# Entry points: new_model.
# The shape is config/model.py's NewModelConfig; weights come from one seed and no global random state is left changed.
"""Randomly initialised models."""

from __future__ import annotations

from typing import Any

import torch

from hildanext.config.model import NewModelConfig
from hildanext.errors import ModelError


def new_model(shape: NewModelConfig, vocab_size: int, seed: int = 0, **config: Any) -> Any:
    """A Qwen3ForCausalLM in float32 with `vocab_size` rows (ids), initialised from `seed`; `config`: further fields of
    Qwen3Config such as eos_token_id. ModelError where the heads do not divide."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if (not shape.head_dim and shape.hidden % shape.heads) or shape.heads % shape.kv_heads:
        raise ModelError(
            f"model.new: hidden {shape.hidden}, heads {shape.heads}, kv_heads {shape.kv_heads}; hidden must be a"
            " multiple of heads (or give head_dim) and heads of kv_heads; change one of them"
        )
    settings = Qwen3Config(
        vocab_size=vocab_size, hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim or shape.hidden // shape.heads,
        initializer_range=shape.init_std or 0.7 / shape.hidden**0.5, rope_theta=shape.rope_theta,
        max_position_embeddings=shape.window, tie_word_embeddings=shape.tied, attention_dropout=0.0,
        **({"bos_token_id": None, "eos_token_id": None} | config),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(settings)
