# A fresh model of any causal family of transformers, random weights: for parents trained from scratch and for tests.
# Entry points: new_model.
# The shape is config/model.py's NewModelConfig; weights come from one seed and no global random state is left changed.
"""Randomly initialised models."""

from __future__ import annotations

from typing import Any

import torch

from hildanext.config.model import NewModelConfig
from hildanext.errors import ModelError
from hildanext.models.support import check_head, check_supported, fold_scale


def new_model(shape: NewModelConfig, vocab_size: int, seed: int = 0, **config: Any) -> Any:
    """A causal LM of family shape.model_type in float32 with `vocab_size` rows (ids), initialised from `seed`;
    `config`: further fields of its configuration such as eos_token_id. ModelError where the heads do not divide, the
    family is no causal LM, has no such field, cannot be built from these, or is refused."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    if (not shape.head_dim and shape.hidden % shape.heads) or shape.heads % shape.kv_heads:
        raise ModelError(
            f"model.new: hidden {shape.hidden}, heads {shape.heads}, kv_heads {shape.kv_heads}; hidden must be a"
            " multiple of heads (or give head_dim) and heads of kv_heads; change one of them"
        )
    given = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None} | config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = AutoModelForCausalLM.from_config(_settings(shape, given), dtype=torch.float32)
        except (StrictDataclassError, ValueError, TypeError, RuntimeError, AttributeError, LookupError) as error:
            cause = " ".join(str(error).split())
            raise ModelError(f"model.new: {shape.model_type} cannot be built from these fields: {cause}") from error
    _check_width(shape, network)
    check_supported(network.config, "model.new")
    fold_scale(network)
    check_head(network, "model.new")
    return network


def _check_width(shape: NewModelConfig, network: Any) -> None:
    attention = [part for part in network.modules() if "Attention" in type(part).__name__]
    widths = {int(part.head_dim) for part in attention if hasattr(part, "head_dim")}
    if shape.head_dim and widths - {shape.head_dim}:
        found = ", ".join(map(str, sorted(widths)))
        raise ModelError(
            f"model.new.head_dim: heads of {shape.model_type} are {found} wide whatever head_dim says, here"
            f" {shape.head_dim}; leave it 0"
        )


def _settings(shape: NewModelConfig, given: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if shape.model_type not in CONFIG_MAPPING or CONFIG_MAPPING[shape.model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"model.new.model_type: transformers has no causal language model {shape.model_type}; use one that it has,"
            " such as qwen3, llama, lfm2 or qwen3_5_text"
        )
    plain = AutoConfig.for_model(shape.model_type)
    known = {*plain.to_dict(), *plain.attribute_map}
    values = {
        "hidden_size": shape.hidden, "intermediate_size": shape.ffn, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "initializer_range": shape.init_std or 0.7 / shape.hidden**0.5, "max_position_embeddings": shape.window,
        "tie_word_embeddings": shape.tied, "rope_theta": shape.rope_theta,
    }  # fmt: skip
    # what a family does not have of these it does not need; what is named for it alone it must have
    values = {name: value for name, value in values.items() if name in known or name == "rope_theta"}
    values |= {name: 0.0 for name in ("attention_dropout",) if name in known}
    if shape.head_dim or "head_dim" in known:
        values["head_dim"] = shape.head_dim or shape.hidden // shape.heads
    if unknown := sorted(set(shape.config) - known):
        raise ModelError(
            f"model.new.config: the configuration of {shape.model_type} has no field {', '.join(unknown)}; leave it out"
        )
    return type(plain)(**(values | given | shape.config))
