# A model folder: the kind's files (plain Hugging Face ones for `hf`), the tokenizer, and hildanext.json.
# Entry points: save_model, write_model.
# The folder appears whole or not at all, and replaces only a model folder in which nothing else lies. The licence files
# of what the model was made of go with it.
"""Saving models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hildanext.core.levenshtein import Acts
from hildanext.core.types import Denoiser
from hildanext.disk import replacing, write_atomic
from hildanext.errors import RunError, cure, first_line
from hildanext.models.kind import kind_of
from hildanext.models.licence import carry
from hildanext.models.meta import META_FILE, HildaMeta


def save_model(
    denoiser: Denoiser, tokenizer: Any, folder: Path | str, meta: HildaMeta | None = None, origin: Path | None = None
) -> Path:
    """Write model, tokenizer and metadata to `folder`, replacing it by rename; returns it. meta names the kind;
    mask_id, shift and block grid are the denoiser's; origin: the folder it was made of, whose licence files are
    copied. HildaError where something else lies there."""
    folder = Path(folder)
    with replacing(folder) as fresh:
        write_model(denoiser, tokenizer, fresh, meta or HildaMeta(), origin)
    return folder


def write_model(denoiser: Denoiser, tokenizer: Any, folder: Path, meta: HildaMeta, origin: Path | None = None) -> None:
    """The same into a folder that is still being made (see disk.replacing). RunError where the disk is full."""
    facts = {"mask_id": denoiser.mask_id, "shift": denoiser.shift, "block_grid": denoiser.block_grid}
    facts["edit_ids"] = denoiser.edit_ids if isinstance(denoiser, Acts) else None
    facts |= {"recommended": None}  # tuned for the weights it was found with
    folder.mkdir(parents=True, exist_ok=True)
    try:
        kind_of(meta).save(denoiser, folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) not in (SafetensorError, Exception):  # the Rust writers of weights and of tokenizers
            raise
        advice = cure(error, "look at the folder and its file system, or name another", folder)
        raise RunError(f"{folder}: cannot be written ({first_line(error)}); {advice}") from error
    carry(origin, folder)
    write_atomic(folder / META_FILE, meta.model_copy(update=facts).text())
