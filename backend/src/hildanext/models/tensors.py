# The tensors of a model folder, read one at a time from its safetensors files.
# Entry points: Tensors, weight_files, stored_dtype.
# A model of any size can be inspected or compared in the memory of its largest tensor. Files that transformers would
# not load (beside model.safetensors, or not in the index) are not read either.
"""Tensors on disk."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hildanext.errors import ModelError

STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype most weights of a folder are stored in; None where there are none, or they are quantised."""
    from safetensors import SafetensorError, safe_open

    counts: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118
                    part = handle.get_slice(name)
                    counts[part.get_dtype()] += math.prod(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: the weights are damaged ({error}); restore the file") from error
    return STORED.get(max(counts, key=lambda kind: counts[kind])) if counts else None


SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: model.safetensors, else those of the index, sorted. ModelError where there are
    none, one is missing or may not be read, or the index is damaged."""
    present = sorted(folder.glob("*.safetensors"))
    if not present:
        raise ModelError(f"{folder}: no *.safetensors files; expected a Hugging Face model folder")
    if (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    elif (folder / INDEX).is_file():
        files = [folder / name for name in _indexed(folder / INDEX)]
    else:
        raise ModelError(f"{folder}: {present[0].name}, but neither {SINGLE} nor {INDEX}; restore the index")
    for file in files:
        if not file.is_file():
            raise ModelError(f"{folder}: {file.name} of {INDEX} is missing; restore the file")
        if not os.access(file, os.R_OK):
            raise ModelError(f"{file}: may not be read by this user (permissions); chmod a+r it")
    return files


def _indexed(path: Path) -> list[str]:
    try:
        return sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path}: the index cannot be read ({type(error).__name__}: {error}); restore it") from error


class Tensors:
    """The tensors of a folder by name, over all of its files. ModelError where there are none or they are damaged."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            handles: list[Any] = [safe_open(file, framework="pt") for file in weight_files(folder)]
        except SafetensorError as error:
            raise ModelError(f"{folder}: the weights are damaged ({error}); restore the files") from error
        self._owner = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
        self.names = sorted(self._owner)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._owner[name].get_tensor(name)
        return tensor
