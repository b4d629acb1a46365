# Kind `hf`: a causal language model of transformers, any family whose layers are a softmax over a mask.
# Entry points: Hf (plugin); check_supported, check_head say which architectures are refused and why.
# Only safetensors are read; nothing is fetched from anywhere. The folder stays plain Hugging Face: AutoModelForCausalLM
# loads it without this package.
"""Model kind hf."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hildanext.config.model import ModelConfig
from hildanext.core.types import Denoiser
from hildanext.data.tokenizers import load_tokenizer
from hildanext.errors import ModelError, first_line
from hildanext.models.denoiser import HFDenoiser, network
from hildanext.models.footprint import NetworkFootprint
from hildanext.models.inspection import parity
from hildanext.models.kind import ModelKind, Use
from hildanext.models.load import read_config
from hildanext.models.lora import has_adapter, keep_differentiable, quantisation
from hildanext.models.mask_token import MASK_TEXT, choose_mask_token
from hildanext.models.meta import HildaMeta
from hildanext.models.new import new_model
from hildanext.models.tensors import Tensors
from hildanext.run_dir import write_atomic


class Hf(ModelKind):
    """A Hugging Face folder: config.json, *.safetensors."""

    uses: ClassVar[frozenset[Use]] = frozenset(("train", "decode", "export"))

    def load(
        self, folder: Path | None, model: ModelConfig, tokenizer: Any, meta: HildaMeta, device: torch.device,
        dtype: torch.dtype,
    ) -> Denoiser:  # fmt: skip
        """The network behind HFDenoiser; without a recorded [MASK] one is chosen, which may add a row."""
        held = _fresh(model, tokenizer) if folder is None else _read(folder, model, dtype, device)
        mask_id = _mask_id(model, meta, held, tokenizer)
        shift = meta.shift if model.shift == "auto" else model.shift
        grid = meta.block_grid if model.block_grid == "auto" else model.block_grid
        denoiser = HFDenoiser(held, mask_id, attention=model.attention, shift=shift, block_grid=grid)
        if not getattr(held, "is_quantized", False):
            denoiser = denoiser.to(device, dtype)
        return denoiser.eval()

    def save(self, denoiser: Denoiser, folder: Path) -> None:
        """As transformers saves it; rope_theta and tie_word_embeddings stand explicitly in config.json."""
        held = network(denoiser)
        if has_adapter(held):
            raise ValueError("save_model: the model carries adapters; merge_adapter first")
        held.save_pretrained(folder)
        _complete(folder / "config.json", held)

    def footprint(self, model: ModelConfig) -> NetworkFootprint:
        """Counted on the network without storage (meta device)."""
        return NetworkFootprint.of(model)

    def facts(self, folder: Path) -> dict[str, Any]:
        """Architecture, parameters, ties, vocabulary, free rows and mask token."""
        config, tensors = read_config(folder), Tensors(folder)
        each = (tensors[name] for name in tensors.names)
        rows = [(tensor.numel(), tensor.element_size(), str(tensor.dtype)) for tensor in each]
        return {
            "architecture": _architecture(config, folder),
            "parameters": sum(count for count, _, _ in rows),
            "bytes": sum(count * size for count, size, _ in rows),
            "dtypes": sorted({dtype.removeprefix("torch.") for _, _, dtype in rows}),
            "ties": {
                "config": bool(config.tie_word_embeddings),
                "output_matrix_stored": "lm_head.weight" in tensors.names,
            },
            "vocabulary": _vocabulary(folder, tensors),
        }

    def parity(self, denoiser: Denoiser) -> dict[str, Any]:
        """Block size 1 on the clean stream against transformers' own forward."""
        return parity(denoiser)

    def label(self, denoiser: Denoiser) -> str:
        """The model_type of the configuration."""
        return str(network(denoiser).config.model_type)


def check_supported(config: Any, where: str) -> None:
    """ModelError, saying why, for an architecture that a 4-D mask does not turn into block diffusion."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None)
    if kinds & {"sliding_attention", "chunked_attention"} or (not kinds and window and _uses_window(config)):
        raise ModelError(
            f"{where}: {config.model_type} has sliding-window layers (window {window}), which cannot see a whole clean"
            " prefix; use a model with full attention in every layer"
        )
    if kinds or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{where}: {config.model_type} has {', '.join(sorted(kinds)) or 'encoder-decoder'} layers, which are not a"
            " softmax over a mask, so no block size can be put into them; use a softmax-attention decoder"
        )
    if not _takes_attention(config) or getattr(config, "attn_logit_softcapping", None):
        raise ModelError(
            f"{where}: {config.model_type} does not take its attention from transformers' AttentionInterface, so its"
            " layers are not a softmax over a mask that can be given; use Qwen3, Qwen2, Llama, Mistral or a like model"
        )


def check_head(network: Any, where: str) -> None:
    """ModelError where logits are not the features times the output matrix: a bias, a scale or a cap on them."""
    names = ("logits_scaling", "logit_scale", "final_logit_softcapping", "lm_head_multiplier")
    scales = [name for name in names if getattr(network.config, name, None) not in (None, 0, 1, 1.0)]
    bias = getattr(network.get_output_embeddings(), "bias", None) is not None
    if scales or bias:
        raise ModelError(
            f"{where}: {network.config.model_type} has {'an output bias' if bias else scales[0]}: its logits are not"
            " the features times the output matrix, which training and likelihood rely on; use another model"
        )


def _takes_attention(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return not known or bool(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_attention_backend)


def _uses_window(config: Any) -> bool:
    return bool(getattr(config, "use_sliding_window", True)) and not getattr(config, "layer_types", None)


def _fresh(model: ModelConfig, tokenizer: Any) -> Any:
    turn = tokenizer.get_vocab().get("<|im_end|>")
    eos = tokenizer.eos_token_id if turn is None else [tokenizer.eos_token_id, turn]
    return new_model(model.new, max(tokenizer.get_vocab().values()) + 1, model.new.seed, eos_token_id=eos)


def _mask_id(model: ModelConfig, meta: HildaMeta, network: Any, tokenizer: Any) -> int:
    wanted = meta.mask_id if model.mask_id is None else model.mask_id
    if wanted is None:
        return choose_mask_token(network, tokenizer)
    rows = int(network.get_input_embeddings().weight.shape[0])
    if not 0 <= wanted < rows:
        raise ModelError(f"model.mask_id {wanted}: the embedding has rows 0 to {rows - 1}; choose one of them or null")
    return wanted


def _read(folder: Path, model: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers.utils import logging

    _check_files(folder, model.trust_remote_code)
    config = read_config(folder, model.trust_remote_code)
    check_supported(config, str(folder))
    logging.disable_progress_bar()
    stored = quantisation(model.adapter, device)
    extra = {} if stored is None else {"quantization_config": stored, "device_map": {"": device}}
    asked = {"config": config, "dtype": dtype, "trust_remote_code": model.trust_remote_code, **extra}
    network = _weights(folder, asked)
    check_head(network, str(folder))
    keep_differentiable(network)
    return network


def _weights(folder: Path, asked: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        network, found = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, attn_implementation="sdpa", output_loading_info=True,
            **asked,
        )  # fmt: skip
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise ModelError(
            f"{folder}: the weights cannot be loaded ({first_line(error)}); they are damaged or do not fit config.json"
        ) from error
    if found["missing_keys"]:
        absent = sorted(found["missing_keys"])
        raise ModelError(
            f"{folder}: {len(absent)} tensors of config.json are not in the weights, the first {absent[0]};"
            " restore the weights or correct config.json"
        )
    return network


def _check_files(folder: Path, trust: bool) -> None:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if not list(folder.glob("*.safetensors")):
        found = f"only {pickles[0]}, a pickle, which can run code" if pickles else "none"
        raise ModelError(f"{folder}: weights: {found}; expected *.safetensors; convert them first")
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder}/config.json: not valid JSON ({error}); restore the file") from error
    if not isinstance(values, dict):
        raise ModelError(f"{folder}/config.json: not a JSON object; restore the file")
    if "auto_map" in values and not trust:
        raise ModelError(f"{folder}: the model brings its own code; set model.trust_remote_code=true to run it")


def _complete(path: Path, model: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    rope = getattr(model.config, "rope_parameters", None) or {}
    theta = rope.get("rope_theta", getattr(model.config, "rope_theta", None))
    if theta is not None:
        values["rope_theta"] = theta
    values["tie_word_embeddings"] = _tied(model)
    write_atomic(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def _architecture(config: Any, path: Path) -> dict[str, Any]:
    names = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "vocab_size")  # fmt: skip
    rope = getattr(config, "rope_parameters", None) or {}
    facts = {name: getattr(config, name, None) for name in names} | {"rope_theta": rope.get("rope_theta")}
    try:
        check_supported(config, str(path))
    except ModelError as error:
        return facts | {"supported": False, "reason": str(error)}
    return facts | {"supported": True, "reason": "softmax attention over a mask in every layer"}


def _vocabulary(path: Path, tensors: Tensors) -> dict[str, Any]:
    matrix = next((tensors[name] for name in tensors.names if name.endswith("embed_tokens.weight")), None)
    known = load_tokenizer(path).get_vocab()
    meta, used = HildaMeta.read(path), max(known.values()) + 1
    rows = 0 if matrix is None else int(matrix.shape[0])
    mask_id, source = meta.mask_id, "hildanext.json"
    if mask_id is None:
        mask_id = known.get(MASK_TEXT, used)
        source = "tokenizer" if MASK_TEXT in known else "first free row" if used < rows else "a new row (resize)"
    facts = {"rows": rows, "tokenizer": used, "free_rows": max(0, rows - used), "mask_id": mask_id, "mask_from": source}
    return facts if matrix is None else facts | _norms(matrix, mask_id)


def _norms(matrix: Tensor, mask_id: int) -> dict[str, Any]:
    norms = torch.cat([part.float().norm(dim=1) for part in torch.split(matrix, 4096)])
    own = float(norms[mask_id]) if mask_id < len(norms) else None
    return {"median_row_norm": float(norms.median()), "mask_row_norm": own}
