# A model folder: plain Hugging Face files, the tokenizer, and hildanext.json.
# Entry points: save_model.
# The folder appears whole or not at all; AutoModelForCausalLM loads it without this package.
"""Saving models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hildanext.models.lora import has_adapter
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.run_dir import replacing, write_atomic


def save_model(denoiser: Any, tokenizer: Any, folder: Path | str, meta: HildaMeta | None = None) -> Path:
    """Write model, tokenizer and metadata to `folder`, replacing it by rename; returns it. mask_id and shift are the
    denoiser's. rope_theta and tie_word_embeddings stand explicitly in config.json."""
    if has_adapter(denoiser.model):
        raise ValueError("save_model: the model carries adapters; merge_adapter first")
    folder = Path(folder)
    with replacing(folder) as fresh:
        denoiser.model.save_pretrained(fresh)
        _complete(fresh / "config.json", denoiser.model)
        tokenizer.save_pretrained(fresh)
        facts = {"mask_id": denoiser.mask_id, "shift": denoiser.shift, "block_grid": denoiser.block_grid}
        write_atomic(fresh / META_FILE, (meta or HildaMeta()).model_copy(update=facts).text())
    return folder


def _complete(path: Path, model: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    rope = getattr(model.config, "rope_parameters", None) or {}
    theta = rope.get("rope_theta", getattr(model.config, "rope_theta", None))
    if theta is not None:
        values["rope_theta"] = theta
    values["tie_word_embeddings"] = tied(model)
    write_atomic(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def tied(model: Any) -> bool:
    """Whether embedding and output matrix are one tensor."""
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight
