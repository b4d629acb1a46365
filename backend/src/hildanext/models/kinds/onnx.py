# Kind `onnx`: a step of a denoiser that `hildanext export --format onnx` wrote, run by onnxruntime on the CPU.
# Entry points: Onnx (plugin).
# It decodes and nothing else: the model that it was made of is the one to train, score and export.
"""Model kind onnx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.core.types import Denoiser
from hildanext.errors import ModelError
from hildanext.models.kind import ModelKind, Use
from hildanext.models.load import model_folder
from hildanext.models.mask_token import shift_of
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.models.onnx.denoiser import OnnxDenoiser
from hildanext.models.onnx.facts import MODEL, Facts


@dataclass(frozen=True)
class OnnxFootprint:
    """Bytes of a graph's files and of the keys and values of one token."""

    size: int
    token: int

    def weights(self, dtype: torch.dtype) -> float:
        """Those of the files, whatever the dtype asked for."""
        return float(self.size)

    def training(self, config: Config, window: int, ranks: int) -> Mapping[str, float]:
        """ModelError: it cannot be trained."""
        raise ModelError("model: an ONNX export cannot be trained; use the folder it was made of")

    def unsure(self, config: Config, window: int) -> str:
        """Nothing: it is not trained."""
        return ""

    def decoding(self, config: Config, window: int) -> Mapping[str, float]:
        """Weights, and keys and values of every request."""
        return {"parameters": float(self.size), "kv": float(config.decode.requests * window * self.token)}


class Onnx(ModelKind):
    """model.onnx, model.onnx.data, onnx.json, hildanext.json, tokenizer."""

    uses: ClassVar[frozenset[Use]] = frozenset(("decode",))
    engine: ClassVar[str] = "onnx"

    def load(
        self, folder: Path | None, model: ModelConfig, tokenizer: Any, meta: HildaMeta, device: torch.device,
        dtype: torch.dtype,
    ) -> Denoiser:  # fmt: skip
        """The session behind OnnxDenoiser. ModelError for another dtype, device or mask id than the graph's."""
        if folder is None or meta.mask_id is None:
            raise ModelError(f"{folder}: {META_FILE} records no mask_id; export the model again")
        if model.mask_id not in (None, meta.mask_id):
            raise ModelError(f"model.mask_id {model.mask_id}: the graph was exported with {meta.mask_id}; leave it out")
        if device.type != "cpu":
            raise ModelError(f"model.device {device}: an ONNX export runs on the CPU; use model.device=cpu")
        if dtype != torch.float32:
            raise ModelError(f"model.dtype {dtype}: an ONNX export computes in float32; leave model.dtype auto")
        grid = meta.block_grid if model.block_grid == "auto" else model.block_grid
        return OnnxDenoiser.open(folder, meta.mask_id, shift_of(model, meta), grid)

    def footprint(self, model: ModelConfig) -> OnnxFootprint:
        """From the sizes of the files."""
        folder = model_folder(model.path)
        facts = Facts.read(folder)
        size = sum(path.stat().st_size for path in folder.glob(f"{MODEL}*"))
        return OnnxFootprint(size, 8 * facts.layers * facts.kv_heads * facts.head_dim)

    def label(self, denoiser: Denoiser) -> str:
        """onnx, and its weights."""
        return f"onnx {denoiser.facts.weights}" if isinstance(denoiser, OnnxDenoiser) else "onnx"

    def facts(self, folder: Path) -> dict[str, Any]:
        """What onnx.json says, and the bytes of the files."""
        size = sum(path.stat().st_size for path in folder.glob(f"{MODEL}*"))
        return super().facts(folder) | {"bytes": size, "onnx": Facts.read(folder).model_dump()}
