# Tiny configurations of many families of transformers, each with the verdict the project must come to.
# Entry points: FAMILIES (name -> Family), tiny.
# A verdict is "exact", or a word of the line that refuses the model. Every parameter is random, vectors included: a
# bias or a gate that starts at zero would hide what it does.
"""Material of the sweep over families."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHAPE: dict[str, Any] = {
    "vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8, "attention_dropout": 0.0,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
    "shared_expert_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "ffn_dim": 48, "word_embed_proj_dim": 32, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    "hidden_dropout": 0.0, "dropout": 0.0,
}  # fmt: skip
MLA = {"num_key_value_heads": 4}
EXACT, WINDOW, NO_SOFTMAX = "exact", "sliding-window", "not a softmax over a mask"
NO_INTERFACE, HEAD = "AttentionInterface", "not the features times the output matrix"
LENGTH, PARITY = "differently at different lengths", "parity"


@dataclass(frozen=True)
class Family:
    """What the project must say of one configuration. changes: fields beside SHAPE."""

    model_type: str
    verdict: str
    changes: dict[str, Any] = field(default_factory=dict)


def rope(kind: str, **values: Any) -> dict[str, Any]:
    """rope_parameters of a type."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32, "factor": 8.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = YARN | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
PLAIN = (
    "apertus", "arcee", "bitnet", "diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "flex_olmo", "gemma", "glm", "glm4",
    "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "granitemoe", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2", "jetmoe",
    "laguna", "llama", "minimax_m2", "ministral3", "mistral", "mixtral", "olmo", "olmo2", "olmoe", "opt", "persimmon",
    "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "starcoder2",
)  # fmt: skip
WINDOWED = ("mistral", "mixtral", "phi3", "phimoe", "starcoder2")
FAMILIES = {
    **{name: Family(name, EXACT, {"sliding_window": None} if name in WINDOWED else {}) for name in PLAIN},
    **{name: Family(name, EXACT, MLA) for name in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "youtu")},
    "llama linear": Family("llama", EXACT, rope("linear", factor=4.0)),
    "llama yarn": Family("llama", EXACT, rope("yarn", **YARN)),
    "llama 3 rope": Family("llama", EXACT, rope("llama3", **LLAMA3)),
    "llama tied": Family("llama", EXACT, {"tie_word_embeddings": True}),
    "llama one key head": Family("llama", EXACT, {"num_key_value_heads": 1}),
    "opt narrow embedding": Family("opt", EXACT, {"word_embed_proj_dim": 16}),
    "bigcode all key heads": Family("gpt_bigcode", EXACT, {"multi_query": False}),
    "llama dynamic": Family("llama", LENGTH, rope("dynamic", factor=4.0)),
    "qwen3 dynamic": Family("qwen3", LENGTH, rope("dynamic", factor=4.0)),
    "phi3 longrope": Family("phi3", LENGTH, rope("longrope", **LONG)),
    "doge keep window": Family("doge", LENGTH, {"keep_window_size": 24}),
    "doge": Family("doge", EXACT),
    "nemotron": Family("nemotron", EXACT),
    "mistral window": Family("mistral", WINDOW, {"sliding_window": 8}),
    "gemma2": Family("gemma2", WINDOW), "gemma3_text": Family("gemma3_text", WINDOW),
    "cohere2": Family("cohere2", WINDOW), "gpt_oss": Family("gpt_oss", WINDOW), "exaone4": Family("exaone4", WINDOW),
    "gemma3 nested": Family("gemma3", WINDOW), "gemma4 nested": Family("gemma4", WINDOW),
    "kimi_linear": Family("kimi_linear", NO_SOFTMAX), "jamba": Family("jamba", NO_SOFTMAX),
    "mamba": Family("mamba", NO_SOFTMAX), "t5-like bart": Family("bart", NO_SOFTMAX),
    "deepseek_v32": Family("deepseek_v32", NO_SOFTMAX),
    "bloom": Family("bloom", NO_INTERFACE), "stablelm": Family("stablelm", NO_INTERFACE),
    "mpt": Family("mpt", NO_INTERFACE), "gptj": Family("gptj", NO_INTERFACE),
    "falcon": Family("falcon", NO_INTERFACE), "codegen": Family("codegen", NO_INTERFACE),
    "cohere": Family("cohere", HEAD), "phi": Family("phi", HEAD), "nanochat": Family("nanochat", HEAD),
    "bert": Family("bert", HEAD, {"is_decoder": True}),
    "granite scaled": Family("granite", HEAD, {"logits_scaling": 8.0}),
}  # fmt: skip


def tiny(family: Family) -> Any:
    """The configuration of a family in SHAPE, as far as it has such fields; a nested one keeps its own shape."""
    from transformers import AutoConfig

    plain = AutoConfig.for_model(family.model_type)
    known = {*plain.to_dict(), *plain.attribute_map}
    nested = hasattr(plain, "text_config")
    values = {} if nested else {name: value for name, value in SHAPE.items() if name in known}
    return type(plain)(**(values | family.changes))


def network(config: Any, seed: int = 0) -> Any:
    """A causal LM of the configuration, every parameter random, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.float().eval()
