# A kind of model that is no network: a table of logits by position. A stand-in for any kind a plugin may add.
# Entry points: TableDenoiser, Table (the plugin), TableFootprint, Entry.
# The text it decodes to is known beforehand: the largest entry of every row.
"""The kind `table` of the tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hildanext.core.types import Batch, Denoiser
from hildanext.models.kind import ModelKind


@dataclass(frozen=True)
class TableDenoiser:
    """Logits of a position are its row of the table; features are logits, the head is the identity."""

    table: Tensor
    mask_id: int
    shift: str = "none"
    block_grid: str = "global"
    exact: bool = True
    takes_layout: bool = False
    end_ids: frozenset[int] = frozenset()

    @property
    def vocab_size(self) -> int:
        return self.table.shape[1]

    @property
    def window(self) -> int:
        return self.table.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def device(self) -> torch.device:
        return self.table.device

    def state_bytes(self, positions: int) -> int:
        return 0

    def __call__(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any = None, select: Tensor | None = None,
        layout: Any = None,
    ) -> Tensor:  # fmt: skip
        logits = self.table[positions]
        return logits if select is None else logits[select]

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        return self.table[batch.positions()][select]

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        return self.table[batch.positions()][select]

    def head(self) -> Tensor:
        return torch.eye(self.vocab_size)


@dataclass(frozen=True)
class TableFootprint:
    """Elements of the table."""

    elements: int

    def weights(self, dtype: torch.dtype) -> float:
        return float(self.elements * dtype.itemsize)

    def training(self, config: Any, window: int, ranks: int) -> dict[str, float]:
        return self.decoding(config, window)

    def unsure(self, config: Any, window: int) -> str:
        return ""

    def decoding(self, config: Any, window: int) -> dict[str, float]:
        return {"parameters": 4.0 * self.elements}


class Table(ModelKind):
    """table.safetensors, and no config.json."""

    def load(self, folder: Path | None, model: Any, tokenizer: Any, meta: Any, device: Any, dtype: Any) -> Denoiser:
        from safetensors.torch import load_file

        assert folder is not None and meta.mask_id is not None
        return TableDenoiser(load_file(folder / "table.safetensors")["table"].to(device, dtype), meta.mask_id)

    def save(self, denoiser: Denoiser, folder: Path) -> None:
        from safetensors.torch import save_file

        assert isinstance(denoiser, TableDenoiser)
        save_file({"table": denoiser.table}, folder / "table.safetensors")

    def facts(self, folder: Path) -> dict[str, Any]:
        return super().facts(folder) | {"bytes": (folder / "table.safetensors").stat().st_size}

    def footprint(self, model: Any) -> TableFootprint:
        return TableFootprint(64 * 513)


class Entry:
    """The entry point a package would declare: name = module:class."""

    def __init__(self, name: str, plugin: type) -> None:
        self.name, self.plugin = name, plugin

    def load(self) -> type:
        return self.plugin
