# Writes tiny GGUF files of random Llama networks, as llama.cpp's converter would: the material of the GGUF tests.
# Entry points: write_gguf, llama, TEMPLATE, NEEDED.
# Rows of the query and key matrices are permuted on the way in, as in every Llama GGUF; reading must undo it.
"""Tiny GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

NEEDED = "GGUF needs the extra `gguf` (packages gguf and accelerate), which is not installed"
HERE = all(find_spec(name) is not None for name in ("gguf", "accelerate"))
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def vocabulary() -> list[str]:
    """Three control tokens, 256 bytes and one merge."""
    from tokenizers import pre_tokenizers

    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]


def llama(make: Callable[..., Any], **changes: Any) -> Any:
    """A random Llama over the vocabulary, widths multiples of 32 so that every quantisation fits."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": True, "vocab_size": len(vocabulary())}
    return make("llama", **(shape | changes))


def _turned(weight: Tensor, heads: int) -> Tensor:
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _tensors(model: Any) -> dict[str, Tensor]:
    found = {"token_embd.weight": model.get_input_embeddings().weight, "output_norm.weight": model.model.norm.weight}
    if not model.config.tie_word_embeddings:
        found["output.weight"] = model.lm_head.weight
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for number, layer in enumerate(model.model.layers):
        for name, parameter in layer.named_parameters():
            own = NAMES[name.removesuffix(".weight")]
            found[f"blk.{number}.{own}.weight"] = _turned(parameter, heads[own]) if own in heads else parameter
    return {name: tensor.detach().float() for name, tensor in found.items()}


def write_gguf(
    path: Path, model: Any, stored: str = "F32", more: Mapping[str, Tensor] | None = None, drop: str = "", **said: str
) -> Path:
    """Write `model` with matrices stored as `stored`; more: further tensors; drop: one left out; said: text fields."""
    import gguf

    writer = gguf.GGUFWriter(str(path), said.pop("architecture", "llama"))
    config = model.config
    for name, text in {"general.name": "Tiny", "general.license": "apache-2.0", **said}.items():
        writer.add_string(name.replace("__", "."), text)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _words(writer, said.get("tokenizer__ggml__pre", "smollm"))
    kind = gguf.GGMLQuantizationType[stored]
    for name, tensor in {**_tensors(model), **(more or {})}.items():
        own = kind if tensor.dim() > 1 else gguf.GGMLQuantizationType.F32
        if name != drop:
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _words(writer: Any, split: str) -> None:
    words = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(words)
    writer.add_token_types([3 if word in SPECIAL else 1 for word in words])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
