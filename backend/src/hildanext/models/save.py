# A model folder: the kind's files (plain Hugging Face ones for `hf`), the tokenizer, and hildanext.json.
# Entry points: save_model.
# The folder appears whole or not at all.
"""Saving models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hildanext.core.types import Denoiser
from hildanext.models.kind import kind_of
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.run_dir import replacing, write_atomic


def save_model(denoiser: Denoiser, tokenizer: Any, folder: Path | str, meta: HildaMeta | None = None) -> Path:
    """Write model, tokenizer and metadata to `folder`, replacing it by rename; returns it. meta names the kind;
    mask_id, shift and block grid are the denoiser's."""
    folder, meta = Path(folder), meta or HildaMeta()
    facts = {"mask_id": denoiser.mask_id, "shift": denoiser.shift, "block_grid": denoiser.block_grid}
    with replacing(folder) as fresh:
        kind_of(meta).save(denoiser, fresh)
        tokenizer.save_pretrained(fresh)
        write_atomic(fresh / META_FILE, meta.model_copy(update=facts).text())
    return folder
