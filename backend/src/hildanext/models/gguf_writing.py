# GGUF files as llama.cpp reads them, with [MASK] as a row of the vocabulary and what blocks need.
# Entry points: write_gguf, Stored.
# Llama, Qwen2 and Qwen3. llama.cpp itself reads them left to right; block, mask and shift stand in the metadata, and
# models/gguf.py makes the same folder of it again. Rows of Llama's query and key matrices are permuted, as in all GGUF.
"""Writing GGUF."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hildanext.disk import replacing, write_atomic
from hildanext.errors import ModelError
from hildanext.models.denoiser import network
from hildanext.models.gguf import require_packages
from hildanext.models.licence import carry
from hildanext.models.lora import has_adapter

Stored = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"]
FAMILIES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
TURNED = ("self_attn.q_proj", "self_attn.k_proj")
ROW = 32
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
SPLITS = {
    "smollm": ("Digits", "ByteLevel"),
    "gpt-2": ("ByteLevel",),
    "qwen2": (r"\p{N}|", "ByteLevel"),
    "llama-bpe": (r"\p{N}{1,3}|", "ByteLevel"),
}
CARD = """---
library_name: gguf
tags: [diffusion, block-diffusion, hildanext]
---
# {name}

{what}, written by hildanext. Matrices are {stored}{plain}.

| fact | value |
| --- | --- |
| architecture | {architecture} |
| [MASK] id | {mask_id} |
| block size | {block} |
| logit shift | {shift} |
| tokenizer | {tokenizer} |

llama.cpp reads this file left to right. Decoded by blocks it is read by `hildanext generate --model {name}.gguf`, which
takes mask, block, shift and thresholds from the file.
"""


def write_gguf(loaded: Any, folder: Path, stored: Stored) -> list[str]:
    """Write a folder with one file, a card and the licence, replacing it; returns the names of its files. stored: how
    matrices are; vectors are float32. ModelError for a family, rotary scaling or layer that the format cannot hold, and
    where the package is missing."""
    require_packages("export gguf")
    model = _fitting(loaded)
    with replacing(folder) as fresh:
        split = _split(loaded.tokenizer)
        odd = _file(loaded, model, fresh / f"{folder.name}.gguf", (split, stored))
        carry(loaded.path, fresh)
        write_atomic(fresh / "README.md", _card(loaded, folder.name, (split, stored), odd))
    return sorted(path.name for path in folder.iterdir())


def _file(loaded: Any, model: Any, path: Path, form: tuple[str, Stored]) -> list[str]:
    import gguf

    split, stored = form
    writer = gguf.GGUFWriter(str(path), FAMILIES[type(model).__name__], use_temp_file=True)
    _shape(writer, model.config)
    writer.add_name(path.stem)
    writer.add_file_type(FILE_TYPES[stored.upper()])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _about(writer, loaded)
    _words(writer, loaded, split)
    odd = [name for name, tensor in _tensors(model) if _add(writer, stored, name, tensor)]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return odd


def _add(writer: Any, stored: Stored, name: str, tensor: Tensor) -> bool:
    import gguf

    wanted = gguf.GGMLQuantizationType[stored.upper()]
    fits = stored in ("f32", "f16", "bf16") or tensor.shape[-1] % ROW == 0
    matrix = wanted if fits else gguf.GGMLQuantizationType.F16
    kind = matrix if tensor.dim() > 1 else gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    return not fits and tensor.dim() > 1


def _card(loaded: Any, name: str, form: tuple[str, Stored], odd: list[str]) -> str:
    meta, (split, stored) = loaded.meta, form
    own = f"tokenizer.json inside; llama.cpp cuts text as {split!r}"
    what = "A block-diffusion language model" if meta.block else "A language model"
    return CARD.format(
        name=name, stored=stored, architecture=type(network(loaded.denoiser)).__name__,
        what=f"{what}, converted from {meta.parent}" if meta.parent else what,
        plain=f" ({len(odd)} of them f16, their rows are no multiple of {ROW})" if odd else "",
        mask_id=loaded.denoiser.mask_id, block=f"{meta.block} tokens" if meta.block else "not recorded",
        shift=loaded.denoiser.shift,
        tokenizer=own if split else "inside as tokenizer.json; llama.cpp has none like it",
    )  # fmt: skip


def _fitting(loaded: Any) -> Any:
    model = network(loaded.denoiser)
    kind, config = type(model).__name__, model.config
    found = [] if kind in FAMILIES else [f"the architecture is {kind}, {', '.join(FAMILIES)} can be written"]
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    found += [] if rope == "default" else [f"rotary positions are scaled ({rope})"]
    found += ["its layers slide a window"] if getattr(config, "use_sliding_window", False) else []
    found += ["it is quantised"] if getattr(model, "is_quantized", False) else []
    found += ["it carries adapters"] if has_adapter(model) else []
    if found:
        raise ModelError(f"export gguf: {'; '.join(found)}; use another format, or --format huggingface")
    unknown = [name for name, place in _places(model) if place is None]
    if unknown:
        raise ModelError(f"export gguf: the format has no place for {unknown[0]}; use --format huggingface")
    return model


def _places(model: Any) -> Iterator[tuple[str, str | None]]:
    import gguf

    kind = FAMILIES[type(model).__name__]
    arch = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    known = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    for name, _ in model.named_parameters():
        found = known.get_name(name, (".weight", ".bias"))
        llama_bias = kind == "llama" and name.endswith(".bias")  # which is not permuted alike everywhere
        yield name, None if llama_bias else found


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    own, config = dict(model.named_parameters()), model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, place in _places(model):
        assert place is not None
        tensor = own[name].detach().to("cpu", torch.float32)
        layer = name.removesuffix(".weight")
        if FAMILIES[type(model).__name__] == "llama" and layer.endswith(TURNED):
            tensor = _turned(tensor, heads[layer.rpartition(".")[2]])
        yield place, tensor.contiguous()


def _turned(weight: Tensor, heads: int) -> Tensor:
    pairs = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _shape(writer: Any, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _about(writer: Any, loaded: Any) -> None:
    denoiser = loaded.denoiser
    facts = {"mask_id": denoiser.mask_id, "shift": denoiser.shift, "block_grid": denoiser.block_grid}
    meta = loaded.meta.model_copy(update={**facts, "kind": "hf", "base": None, "recommended": None})
    writer.add_uint32("hildanext.mask_id", denoiser.mask_id)
    writer.add_string("hildanext.shift", denoiser.shift)
    writer.add_uint32("hildanext.block", meta.block or 0)
    writer.add_string("hildanext.meta", meta.text())
    writer.add_array("hildanext.end_ids", sorted(denoiser.end_ids) or [-1])
    # llama.cpp tells no arrays, and the writer leaves empty texts out
    writer.add_string("hildanext.ends", " ".join(map(str, sorted(denoiser.end_ids))) or "none")


def _words(writer: Any, loaded: Any, split: str) -> None:
    tokenizer = loaded.tokenizer
    rows = loaded.denoiser.vocab_size
    held = tokenizer.backend_tokenizer.to_str()
    writer.add_string("tokenizer.huggingface.json", held)
    writer.add_tokenizer_model("gpt2" if split else "none")
    if split:
        _byte_pairs(writer, json.loads(held)["model"], tokenizer, rows)
        writer.add_tokenizer_pre(split)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    for name, value in (ids | {"mask": loaded.denoiser.mask_id}).items():
        if value is not None:
            getattr(writer, f"add_{name}_token_id")(int(value))
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(str(tokenizer.chat_template))


def _byte_pairs(writer: Any, model: Mapping[str, Any], tokenizer: Any, rows: int) -> None:
    known = {index: text for text, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds = [
        (CONTROL if added[index].special else USER_DEFINED) if index in added else NORMAL if index in known else UNUSED
        for index in range(rows)
    ]
    writer.add_token_list([known.get(index, f"[PAD{index}]") for index in range(rows)])
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])


def _split(tokenizer: Any) -> str:
    """llama.cpp's name for how the tokenizer cuts text before merging; empty where it has none of those known here."""
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    if told["model"].get("type") != "BPE" or told["model"].get("byte_fallback"):
        return ""
    outer = told.get("pre_tokenizer") or {}
    parts = outer.get("pretokenizers", [outer])
    found = tuple(
        "Digits" if one.get("type") == "Digits" and one.get("individual_digits")
        else one.get("pattern", {}).get("Regex", "?") if one.get("type") == "Split" else str(one.get("type"))
        for one in parts
    )  # fmt: skip
    return next((name for name, wanted in SPLITS.items() if _cut_alike(found, wanted)), "")


def _cut_alike(found: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    return len(found) == len(wanted) and all(
        one == other or ("|" in other and other in one) for one, other in zip(found, wanted, strict=True)
    )
