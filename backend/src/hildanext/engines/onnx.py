# Our own decoder over an ONNX export of the model: the forward is onnxruntime's, everything else is unchanged.
# Entry points: Onnx (plugin), OnnxSession.
# onnxruntime is imported when a graph is opened. An export of another state of the model is not served.
"""Engine `onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from hildanext.config import Config
from hildanext.engines.protocol import EnginePlugin, Facts, Opening, refused
from hildanext.engines.transformers import NativeSession, native
from hildanext.errors import HildaError, ModelError
from hildanext.models.load import NEW, kind_at, load_model, model_folder, name_of, place
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.models.onnx.facts import FACTS
from hildanext.models.onnx.folder import BITS, Form, Weights, missing_packages, write_onnx
from hildanext.progress import Console

OWN = "onnx"


@dataclass
class OnnxSession(NativeSession):
    """BlockEngine over a graph."""

    @property
    def facts(self) -> Facts:
        """The folder and the weights it holds."""
        return replace(super().facts, dtype=self.loaded.denoiser.facts.weights, dtype_reason="as exported")


class Onnx(EnginePlugin):
    """Our decoder over model.path where it is an ONNX export, else over the export of model.path."""

    weights: Weights = Field("float32", description="weights of the export of model.path that is looked for")
    folder: str = Field("", description="folder of that export; empty: <paths.models>/exports/<name>-onnx[-<weights>]")
    export: bool = Field(False, description="write the export where there is none of the model as it is now")

    def trials(self, config: Config) -> list[Mapping[str, Any]]:
        """Every kind of weights, written at need; none where the packages are missing or model.path is an export."""
        if missing_packages() or config.model.path == NEW or kind_at(config.model.path).engine == OWN:
            return [] if missing_packages() else [{}]
        return [{"serve.engines": {"weights": weights, "export": True}} for weights in ("float32", *BITS)]

    def open(self, config: Config, console: Console) -> Opening:
        """Find the export, or write it, and open it; reasons are those of the loader."""
        if config.decode.int8:
            return refused("decode.int8 rounds PyTorch's weights; give this engine weights int8 instead")
        try:
            folder = self._folder(config, console)
        except HildaError as error:
            return refused(str(error))
        model = config.model.model_copy(update={"path": str(folder), "dtype": "auto"})
        return native("onnx", config.model_copy(update={"model": model}), console, OnnxSession)

    def _folder(self, config: Config, console: Console) -> Path:
        path = config.model.path
        if path == NEW:
            raise ModelError("model.path is 'new': there is no export of it")
        if kind_at(path).engine == OWN:
            return model_folder(path)
        suffix = "" if self.weights == "float32" else f"-{self.weights}"
        name = f"{name_of(place(path).resolve())}-onnx{suffix}"
        folder = Path(self.folder or Path(config.paths.models) / "exports" / name)
        if not (why := _unfit(folder, model_folder(path))):
            return folder
        if not self.export:
            form = f'\'export.format={{"type": "onnx", "weights": "{self.weights}"}}\''
            raise ModelError(f"{why}; `hildanext export --model {path} --set {form} --output {folder}` writes one")
        console.say(f"engine onnx: {why}; writing {folder}")
        write_onnx(
            load_model(config.model.model_copy(update={"dtype": "float32"}), console), folder, Form(self.weights)
        )
        return folder


def _unfit(folder: Path, source: Path) -> str:
    if not (folder / FACTS).is_file():
        return f"no ONNX export of the model at {folder}"
    ours, theirs = HildaMeta.read(folder), HildaMeta.read(source)
    same = all(getattr(ours, name) == getattr(theirs, name) for name in ("run", "parent", "history"))
    return "" if same else f"the ONNX export at {folder} is of another state of the model ({META_FILE} differs)"
