# Our own decoder over a GGUF file of the model: the forward is llama.cpp's, everything else is unchanged.
# Entry points: LlamaCpp (plugin), LlamaCppSession.
# llama-cpp-python is optional and imported when a file is opened. A file of another state of the model is not served.
"""Engine `llamacpp`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from hildanext.config import Config
from hildanext.data.tokenizers import load_tokenizer
from hildanext.engines.protocol import EnginePlugin, Facts, Opening, refused
from hildanext.engines.transformers import NativeSession
from hildanext.errors import HildaError, ModelError
from hildanext.models.gguf import gguf_at
from hildanext.models.gguf_writing import Stored, write_gguf
from hildanext.models.llamacpp.denoiser import LlamaCppDenoiser
from hildanext.models.llamacpp.library import library
from hildanext.models.load import NEW, Loaded, kind_at, load_model, model_folder, name_of, place
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.progress import Console


@dataclass
class LlamaCppSession(NativeSession):
    """BlockEngine over a GGUF file."""

    @property
    def facts(self) -> Facts:
        """The file and how its matrices are stored."""
        return replace(super().facts, dtype=self.loaded.denoiser.stored, dtype_reason="as stored")


class LlamaCpp(EnginePlugin):
    """Our decoder over model.path where it is a GGUF file of ours, else over the GGUF export of model.path; llama.cpp
    computes, on the processor or where its build can."""

    stored: Stored = Field("q8_0", description="matrices of the export of model.path that is looked for")
    file: str = Field("", description="the GGUF file; empty: <paths.models>/exports/<name>-gguf-<stored>")
    export: bool = Field(False, description="write the export where there is none of the model as it is now")
    keys: Literal["", "float32", "float16"] = Field(
        "", description="what keys and values are kept in; empty: float32 under float32 weights, else float16"
    )

    def trials(self, config: Config) -> list[Mapping[str, Any]]:
        """The common kinds of storing, written at need; none where a package is missing or the model is of a kind that
        no file can be written of."""
        path, packages = config.model.path, ("llama_cpp", "gguf", "accelerate")
        if path == NEW or kind_at(path).engine or any(find_spec(name) is None for name in packages):
            return []
        if gguf_at(Path(path).expanduser()) is not None:
            return [{}]
        return [{"serve.engines": {"stored": stored, "export": True}} for stored in ("f16", "q8_0", "q4_0")]

    def open(self, config: Config, console: Console) -> Opening:
        """Find the file, or write it, and open it; reasons say what is missing."""
        if config.decode.int8:
            return refused("decode.int8 rounds PyTorch's weights; give this engine stored q8_0 instead")
        if config.model.path != NEW and config.model.device not in ("auto", "cpu"):
            return refused(
                f"model.device {config.model.device}: llama.cpp's own build says where it computes; use auto"
            )
        try:
            library()
            source = self._source(config)
            denoiser, meta = self._denoiser(config, source, console), HildaMeta.read(source)
            tokenizer = load_tokenizer(kind_at(config.model.path).home(source))
        except HildaError as error:
            return refused(str(error))
        facts = {"mask_id": denoiser.mask_id, "shift": denoiser.shift, "base": None, "kind": "hf"}
        loaded = Loaded(
            denoiser, tokenizer, meta.model_copy(update=facts), source, torch.float32, "as stored", torch.device("cpu")
        )
        session = LlamaCppSession("llamacpp", loaded, config)
        for caution in session.notes:
            console.warn(caution)
        return Opening(session.capability, session)

    def _source(self, config: Config) -> Path:
        path = config.model.path
        if path == NEW:
            raise ModelError("model.path is 'new': there is no GGUF file of it")
        if other := kind_at(path).engine:
            raise ModelError(f"{path} is for engine {other}")
        return model_folder(path)

    def _denoiser(self, config: Config, source: Path, console: Console) -> LlamaCppDenoiser:
        path = config.model.path
        if not self.file and (own := gguf_at(Path(path).expanduser())) is not None:
            return LlamaCppDenoiser.open(own, self.keys)
        name = f"{name_of(place(path).resolve())}-gguf-{self.stored}"
        folder = Path(config.paths.models) / "exports" / name
        file, why = Path(self.file) if self.file else folder / f"{name}.gguf", ""
        if file.is_file():
            found = LlamaCppDenoiser.open(file, self.keys)
            if not (why := _unfit(found, file, source)):
                return found
        why = why or f"no GGUF export of the model at {file}"
        if not self.export or self.file:
            form = f'\'export.format={{"type": "gguf", "dtype": "{self.stored}"}}\''
            raise ModelError(f"{why}; `hildanext export --model {path} --set {form} --output {folder}` writes one")
        console.say(f"engine llamacpp: {why}; writing {folder}")
        write_gguf(load_model(config.model.model_copy(update={"dtype": "float32"}), console), folder, self.stored)
        return LlamaCppDenoiser.open(file, self.keys)


def _unfit(denoiser: LlamaCppDenoiser, file: Path, source: Path) -> str:
    ours = HildaMeta.read(source)
    same = all(getattr(ours, name) == getattr(denoiser.meta, name) for name in ("run", "parent", "history"))
    return "" if same else f"the GGUF file {file} is of another state of the model ({META_FILE} differs)"
