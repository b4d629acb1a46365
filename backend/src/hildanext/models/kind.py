# What a kind of model is: everything that differs between a Hugging Face network and any other denoiser.
# Entry points: ModelKind (base of the plugins in models/kinds), Footprint, kind_of.
# A folder says its kind in hildanext.json; all else (tokenizer, metadata, decoding, likelihood) is the same for all.
"""The protocol of the registry kind `models`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.core.types import Denoiser
from hildanext.errors import ConfigError, ModelError
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.registry import Plugin, build

Use = Literal["train", "decode", "export"]


class Footprint(Protocol):
    """The bytes a model needs on one device, known before it is loaded; models/preflight.py adds them up."""

    def weights(self, dtype: torch.dtype) -> float:
        """Bytes of the weights alone, as a frozen model holds them."""
        ...

    def training(self, config: Config, window: int, ranks: int) -> Mapping[str, float]:
        """Bytes by part of a training run over rows of `window` tokens, the worst block size of its ladder."""
        ...

    def unsure(self, config: Config, window: int) -> str:
        """What of training's numbers stands on a fall-back, and why, in one line; empty where nothing does."""
        ...

    def decoding(self, config: Config, window: int) -> Mapping[str, float]:
        """Bytes by part of decoding decode.requests requests of `window` tokens."""
        ...


class ModelKind(Plugin):
    """Base of the kinds. `uses` says what its models are good for; a model is asked for nothing else.
    `becomes`: the kind a loaded model is saved as, where it is another; `engine`: the one that decodes with its models,
    where it is not one for all kinds. load and footprint are a kind's own; the rest has defaults."""

    uses: ClassVar[frozenset[Use]] = frozenset(("decode",))
    becomes: ClassVar[str] = ""
    engine: ClassVar[str] = ""

    def load(
        self, folder: Path | None, model: ModelConfig, tokenizer: Any, meta: HildaMeta, device: torch.device,
        dtype: torch.dtype,
    ) -> Denoiser:  # fmt: skip
        """The denoiser of a folder, or a new one by model.new where it is None, in evaluation mode on its device. The
        tokenizer may be given a mask token. ModelError for a folder that cannot be used."""
        raise ValueError(f"model kind {type(self).__name__} defines no load")

    def home(self, folder: Path) -> Path:
        """The folder that holds the configuration and the tokenizer of a model folder."""
        return folder

    def footprint(self, model: ModelConfig) -> Footprint:
        """What the model of model.path needs. ModelError for a folder that cannot be used."""
        raise ValueError(f"model kind {type(self).__name__} defines no footprint")

    def save(self, denoiser: Denoiser, folder: Path) -> None:
        """Write the denoiser into an empty folder, so that load gives it back; tokenizer and hildanext.json follow."""
        raise ModelError(f"model kind {type(self).__name__}: its models cannot be saved")

    def facts(self, folder: Path) -> dict[str, Any]:
        """What `hildanext inspect` reports of a folder beside its metadata; architecture.supported says whether it is a
        network whose parity with the AR model can be measured."""
        reason = f"{type(self).__name__} is no Hugging Face network"
        return {"architecture": {"model_type": type(self).__name__, "supported": False, "reason": reason}}

    def parity(self, denoiser: Denoiser, window: int = 0) -> dict[str, Any]:
        """{"ok": whether the denoiser at block 1 is the AR model, ...}, measured before a conversion up to `window`,
        the length of its rows."""
        return {"ok": True, "reason": f"{type(self).__name__} has no AR forward to compare with"}

    def label(self, denoiser: Denoiser) -> str:
        """The architecture in a word, for the console."""
        return type(self).__name__


def kind_of(meta: HildaMeta) -> ModelKind:
    """The plugin that loads and saves a folder with this metadata. ModelError where there is none of that name."""
    try:
        kind: ModelKind = build("models", {"type": meta.kind}, "models")
    except ConfigError as error:
        raise ModelError(f"{META_FILE}: kind {meta.kind!r}: {error}") from error
    return kind
