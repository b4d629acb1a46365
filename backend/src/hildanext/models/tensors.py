# The tensors of a model folder, read one at a time from its safetensors files.
# Entry points: Tensors, stored_dtype.
# A model of any size can be inspected or compared in the memory of its largest tensor.
"""Tensors on disk."""

from __future__ import annotations

import math
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


class Tensors:
    """The tensors of a folder by name, over all of its files. ModelError where there are none or they are damaged."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{folder}: no *.safetensors files; expected a Hugging Face model folder")
        try:
            handles: list[Any] = [safe_open(file, framework="pt") for file in files]
        except SafetensorError as error:
            raise ModelError(f"{folder}: the weights are damaged ({error}); restore the files") from error
        self._owner = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
        self.names = sorted(self._owner)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._owner[name].get_tensor(name)
        return tensor
