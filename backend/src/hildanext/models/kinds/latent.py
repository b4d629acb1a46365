# Kind `latent`: a latent diffusion model that `hildanext latent` trained; its type is a plugin of hildanext/latents.
# Entry points: Latent (plugin).
# It decodes, and trains on by its own command; what it has no probabilities for is refused by the denoiser, by name.
"""Model kind latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.core.latent import Ground
from hildanext.core.types import Denoiser
from hildanext.data.tokenizers import load_tokenizer
from hildanext.errors import ModelError
from hildanext.models.kind import ModelKind, Use, kind_of
from hildanext.models.latent import (
    PARENT,
    WEIGHTS,
    LatentDenoiser,
    ground_of,
    kind_in,
    latent_of,
    read_facts,
    read_latent,
    write_latent,
)
from hildanext.models.load import Loaded, model_folder
from hildanext.models.meta import HildaMeta


@dataclass(frozen=True)
class FileFootprint:
    """Bytes of a folder's weights, float32."""

    size: int

    def weights(self, dtype: torch.dtype) -> float:
        """Those of the files, in `dtype`."""
        return self.size / 4 * dtype.itemsize

    def training(self, config: Config, window: int, ranks: int) -> Mapping[str, float]:
        """ModelError: its own command knows what it needs."""
        raise ModelError("model: a latent model is trained by `hildanext latent` alone; give a discrete model here")

    def unsure(self, config: Config, window: int) -> str:
        """Nothing."""
        return ""

    def decoding(self, config: Config, window: int) -> Mapping[str, float]:
        """The weights; what a sampler keeps of a text is small beside them and not counted."""
        return {"parameters": float(self.size)}


class Latent(ModelKind):
    """latent.json, latent.safetensors, hildanext.json, tokenizer; parent/ where its type needs the parent to decode."""

    uses: ClassVar[frozenset[Use]] = frozenset(("train", "decode"))
    engine: ClassVar[str] = "latent"

    def load(
        self, folder: Path | None, model: ModelConfig, tokenizer: Any, meta: HildaMeta, device: torch.device,
        dtype: torch.dtype,
    ) -> Denoiser:  # fmt: skip
        """The model behind LatentDenoiser. ModelError for a damaged folder, and for settings of discrete models."""
        if folder is None:
            raise ModelError("model.path new: a latent model is built on another one; use `hildanext latent`")
        if model.mask_id not in (None, meta.mask_id):
            raise ModelError(f"model.mask_id {model.mask_id}: this latent model's is {meta.mask_id}; leave it out")
        read_facts(folder)
        return read_latent(folder, self._parent(folder, model, device, dtype), device, dtype)

    def _parent(
        self, folder: Path, model: ModelConfig, device: torch.device, dtype: torch.dtype
    ) -> tuple[Ground, HildaMeta] | None:  # fmt: skip
        inner = folder / PARENT
        if not inner.is_dir():
            return None
        meta, tokenizer = HildaMeta.read(inner), load_tokenizer(folder)
        asked = model.model_copy(update={"path": str(inner), "mask_id": None, "shift": "auto"})
        denoiser = kind_of(meta).load(inner, asked, tokenizer, meta, device, dtype)
        return ground_of(Loaded(denoiser, tokenizer, meta, inner, dtype, "", device)), meta

    def footprint(self, model: ModelConfig) -> FileFootprint:
        """From the sizes of the files."""
        folder = model_folder(model.path)
        files = [*folder.glob("*.safetensors"), *(folder / PARENT).glob("*.safetensors")]
        return FileFootprint(sum(path.stat().st_size for path in files))

    def save(self, denoiser: Denoiser, folder: Path) -> None:
        """latent.json and latent.safetensors, and the parent where it is always needed."""
        write_latent(latent_of(denoiser), folder)

    def label(self, denoiser: Denoiser) -> str:
        """latent, and its type."""
        return f"latent {denoiser.section['type']}" if isinstance(denoiser, LatentDenoiser) else "latent"

    def facts(self, folder: Path) -> dict[str, Any]:
        """What latent.json says, and the bytes of the weights; exact: whether the type says so."""
        facts, weights = read_facts(folder), folder / WEIGHTS
        kind = kind_in(facts["model"], str(folder))
        size = weights.stat().st_size if weights.is_file() else 0
        reason = f"latent {facts['model']['type']}: texts are drawn, no likelihood, editing or infilling"
        if kind.proposes:
            reason = f"latent {facts['model']['type']}: proposals for a discrete model, which decides"
        architecture = {"model_type": f"latent {facts['model']['type']}", "supported": False, "reason": reason}
        return {"architecture": architecture, "bytes": size, "latent": facts, "exact": kind.proposes}
