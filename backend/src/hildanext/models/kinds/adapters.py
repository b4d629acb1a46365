# Kind `adapters`: low-rank matrices over the weights of another folder, added in as it is loaded.
# Entry points: Adapters (plugin).
# What is loaded is an ordinary `hf` model with the sum in its weights, and is saved as one.
"""Model kind adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from hildanext.config.model import ModelConfig
from hildanext.core.types import Denoiser
from hildanext.errors import ModelError
from hildanext.models.adapter_folder import add_in, base_of, read_adapters, require_base
from hildanext.models.denoiser import hugging_face, network
from hildanext.models.footprint import NetworkFootprint
from hildanext.models.key_scores import KeyScores
from hildanext.models.kind import Use
from hildanext.models.kinds.hf import Hf
from hildanext.models.load import model_folder
from hildanext.models.meta import HildaMeta


class Adapters(Hf):
    """adapter_config.json, adapter_model.safetensors, hildanext.json; base weights and tokenizer are another folder's.
    Source: LoRA arXiv:2106.09685 sec. 4.1."""

    uses: ClassVar[frozenset[Use]] = frozenset(("train", "decode", "export"))
    becomes: ClassVar[str] = "hf"

    def home(self, folder: Path) -> Path:
        """The base's folder."""
        return base_of(folder)[0]

    def load(
        self, folder: Path | None, model: ModelConfig, tokenizer: Any, meta: HildaMeta, device: torch.device,
        dtype: torch.dtype,
    ) -> Denoiser:  # fmt: skip
        """The base as kind `hf` loads it, with W + alpha / rank * B A in place of every adapted W."""
        if folder is None or model.adapter.kind in ("qlora", "lora8bit"):
            raise ModelError(
                f"model.adapter.kind {model.adapter.kind}: {model.path} holds adapters, which are added to unquantised"
                " weights; export it (`hildanext export --format huggingface`) and quantise that folder"
            )
        scale, matrices = read_adapters(folder)
        base = require_base(folder, matrices)
        asked = meta.model_copy(update={"mask_id": None, "kind": self.becomes})
        denoiser = super().load(base, model, tokenizer, asked, device, dtype)
        if denoiser.mask_id != meta.mask_id:
            raise ModelError(f"{base}: its [MASK] is {denoiser.mask_id}, that of the adapters {meta.mask_id}")
        add_in(network(denoiser), matrices, scale)
        # the base's own scores are of other attention
        hugging_face(denoiser).key_scores = KeyScores.found(folder, model.key_scores, network(denoiser))
        return denoiser

    def footprint(self, model: ModelConfig) -> NetworkFootprint:
        """That of the base: the adapters are in its weights."""
        return super().footprint(model.model_copy(update={"path": str(base_of(model_folder(model.path))[0])}))

    def facts(self, folder: Path) -> dict[str, Any]:
        """The base's facts, and what is added to it."""
        base, _ = base_of(folder)
        scale, matrices = read_adapters(folder)
        ranks = sorted({int(down.shape[0]) for down, _ in matrices.values()})
        added = {"base": str(base), "matrices": len(matrices), "rank": ranks, "scale": scale}
        return super().facts(base) | {"adapters": added}
