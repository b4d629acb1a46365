# Kind `hf`: a causal language model of transformers, any family whose layers are a softmax over a mask.
# Entry points: Hf (plugin).
# Which architectures are refused stands in models/support.py, what a folder must be in models/files.py. The folder
# stays plain Hugging Face: AutoModelForCausalLM loads it without this package.
"""Model kind hf."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hildanext.config.model import ModelConfig
from hildanext.core.types import Denoiser
from hildanext.data.tokenizers import load_tokenizer
from hildanext.errors import ModelError
from hildanext.models.denoiser import HFDenoiser, network
from hildanext.models.files import check_plain, read_config, read_network, skeleton
from hildanext.models.footprint import NetworkFootprint
from hildanext.models.inspection import parity
from hildanext.models.key_scores import KeyScores
from hildanext.models.kind import ModelKind, Use
from hildanext.models.lora import has_adapter
from hildanext.models.mask_token import MASK_TEXT, edit_ids_of, mask_id_of, shift_of
from hildanext.models.meta import HildaMeta
from hildanext.models.new import new_model
from hildanext.models.support import check_supported, mixers_by_name, scale_of, text_config
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
        held = _fresh(model, tokenizer) if folder is None else read_network(folder, model, dtype, device)
        mask_id = mask_id_of(model, meta, held, tokenizer)
        edit_ids = edit_ids_of(model, meta, held, tokenizer)
        shift = shift_of(model, meta)
        grid = meta.block_grid if model.block_grid == "auto" else model.block_grid
        denoiser = HFDenoiser(held, mask_id, attention=model.attention, shift=shift, block_grid=grid)
        denoiser.edit_ids = edit_ids
        if not getattr(held, "is_quantized", False):
            denoiser = denoiser.to(device, dtype)
        denoiser.key_scores = KeyScores.found(folder, model.key_scores, held)
        denoiser.eval().probe()  # here, before ranks share the weights
        return denoiser

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
        """Architecture, parameters, tensors that are no part of the language model, ties, vocabulary, free rows and
        mask token."""
        config, tensors = read_config(folder), Tensors(folder)
        network, refusal = _skeleton(folder, config)
        each = (tensors[name] for name in tensors.names)
        rows = [(tensor.numel(), tensor.element_size(), str(tensor.dtype)) for tensor in each]
        return {
            "architecture": _architecture(config, refusal),
            "parameters": sum(count for count, _, _ in rows),
            "bytes": sum(count * size for count, size, _ in rows),
            "skipped": _skipped(network, tensors),
            "dtypes": sorted({dtype.removeprefix("torch.") for _, _, dtype in rows}),
            "ties": {
                "config": bool(getattr(config, "tie_word_embeddings", False)),
                "output_matrix_stored": "lm_head.weight" in tensors.names,
            },
            "vocabulary": _vocabulary(folder, _embedding(network, tensors)),
        }

    def parity(self, denoiser: Denoiser, window: int = 0) -> dict[str, Any]:
        """Block size 1 on the clean stream against transformers' own forward."""
        return parity(denoiser, window)

    def label(self, denoiser: Denoiser) -> str:
        """The model_type of the configuration."""
        return str(network(denoiser).config.model_type)


def _fresh(model: ModelConfig, tokenizer: Any) -> Any:
    turn = tokenizer.get_vocab().get("<|im_end|>")
    eos = tokenizer.eos_token_id if turn is None else [tokenizer.eos_token_id, turn]
    return new_model(model.new, max(tokenizer.get_vocab().values()) + 1, model.new.seed, eos_token_id=eos)


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


def _architecture(config: Any, refusal: str) -> dict[str, Any]:
    names = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "vocab_size")  # fmt: skip
    held = text_config(config)
    rope = getattr(held, "rope_parameters", None) or {}
    facts = {name: getattr(held, name, None) for name in names} | {"rope_theta": rope.get("rope_theta")}
    facts["model_type"] = config.model_type
    every, kinds = "softmax attention over a mask in every layer", mixers_by_name(config)
    others = ", ".join(f"{count} {name}" for name, count in kinds.items())
    reason = refusal or (
        f"recurrent layers in block order ({others}), softmax attention in the others" if others else every
    )
    scale, _ = scale_of(config)
    said = f"; {scale} {getattr(held, scale)} goes into the last norm" if scale and not refusal else ""
    return facts | {"supported": not refusal, "reason": reason + said}


def _skeleton(folder: Path, config: Any) -> tuple[Any, str]:
    try:
        check_supported(config, str(folder))
        check_plain(config, folder)
        return skeleton(folder), ""
    except ModelError as error:
        return None, str(error)


def _skipped(network: Any, tensors: Tensors) -> dict[str, Any]:
    patterns = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()
    names = [name for name in tensors.names if any(re.search(pattern, name) for pattern in patterns)]
    parts = sorted(
        {".".join(name.split(".")[:2]) if name.startswith("model.") else name.split(".")[0] for name in names}
    )
    return {"tensors": len(names), "parameters": sum(tensors[name].numel() for name in names), "parts": parts}


def _embedding(network: Any, tensors: Tensors) -> Tensor | None:
    wanted = {"embed_tokens.weight"}
    if network is not None:
        matrix = network.get_input_embeddings().weight
        wanted = {name for name, parameter in network.named_parameters() if parameter is matrix}
    return next(
        (tensors[name] for name in tensors.names if any(name.endswith(w) or w.endswith(name) for w in wanted)), None
    )


def _vocabulary(path: Path, matrix: Tensor | None) -> dict[str, Any]:
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
