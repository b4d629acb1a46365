# The tensors of a model folder, read one at a time from its safetensors files.
# Entry points: Tensors.
# A model of any size can be inspected or compared in the memory of its largest tensor.
"""Tensors on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hildanext.errors import ModelError


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
