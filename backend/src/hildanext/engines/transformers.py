# Our own decoder over a Hugging Face folder: exact block cache, continuous batching, editing, every step streamed.
# Entry points: Transformers (plugin), NativeSession.
# It refuses the bundled model: that is what `tiny` is for, so a result never hides which weights answered.
"""Engine `transformers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from hildanext.config import Config
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Event
from hildanext.decoding.request import Request, Result
from hildanext.engines.protocol import Capability, EnginePlugin, Facts, Failed, Opening, refused
from hildanext.engines.task import Task, Tasks
from hildanext.errors import HildaError
from hildanext.models.hardware import multiplies
from hildanext.models.load import NEW, choose_device, kind_at, load_model, name_of
from hildanext.models.quantise import int8
from hildanext.progress import Console

BUNDLED = "tiny"


@dataclass
class NativeSession:
    """BlockEngine over one loaded model."""

    name: str
    loaded: Any
    config: Config
    engine: BlockEngine = field(init=False)
    tasks: Tasks = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of texts in the block size that requests get who name none."""
        found: tuple[str, ...] = self.loaded.meta.cautions(self.engine.block)
        return found

    @property
    def capability(self) -> Capability:
        """Exact, cached, batched, editing; streams every step."""
        decode, device = self.config.decode, str(self.loaded.device)
        return Capability(
            True, self.notes, decode.cache, decode.requests, True, "step", self.loaded.denoiser.exact, (device,)
        )

    @property
    def facts(self) -> Facts:
        """The loaded folder, where it is and in which dtype."""
        loaded, engine = self.loaded, self.engine
        name = self.config.serve.name or (
            BUNDLED if self.name == BUNDLED else name_of(loaded.path) if loaded.path else NEW
        )
        dtype = str(loaded.dtype).removeprefix("torch.")
        return Facts(name, str(loaded.device), dtype, loaded.dtype_reason, engine.window, engine.block, self.about)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the folder says of the model."""
        meta, denoiser = self.loaded.meta, self.loaded.denoiser
        counted = sum(one.numel() for one in denoiser.parameters()) if isinstance(denoiser, nn.Module) else None
        return {
            "kind": meta.kind, "parameters": counted, "mask_id": denoiser.mask_id, "shift": meta.shift,
            "converted": meta.block is not None, "parent": meta.parent, "run": meta.run,
            "base": meta.base and meta.base.name,
            "presets": meta.decode, "history": meta.history,
        }  # fmt: skip

    @property
    def pending(self) -> int:
        """Requests waiting or running."""
        return self.engine.pending + len(self.tasks.waiting)

    def submit(self, request: Request, drafts: bool = False) -> int:
        """Queue a request."""
        return self.tasks.add(request) if isinstance(request, Task) else self.engine.submit(request, drafts)

    def step(self) -> list[Event | Failed]:
        """One forward over every window, and a piece of a task."""
        return [*(self.engine.step() if self.engine.pending else ()), *self.tasks.step()]

    def cancel(self, number: int) -> Result | None:
        """End a request at once."""
        self.tasks.waiting.pop(number, None)
        return self.engine.cancel(number)

    def reset(self) -> None:
        """Forget every request and their keys and values."""
        self.engine, self.tasks = BlockEngine(self.loaded, self.config.decode), Tasks(self.loaded)

    def close(self) -> None:
        """Forget every request; the weights go with the session."""
        self.reset()


def dtypes(config: Config) -> list[Mapping[str, Any]]:
    """The precisions our decoder is tried in: float32, bfloat16 where the device multiplies it, int8 on a CPU."""
    device = choose_device(config.model.device)
    found: list[Mapping[str, Any]] = [{"model.dtype": "float32", "decode.int8": False}]
    if multiplies(torch.bfloat16, device):
        found.append({"model.dtype": "bfloat16", "decode.int8": False})
    if device.type == "cpu":
        found.append({"model.dtype": "float32", "decode.int8": True})
    return found


class Transformers(EnginePlugin):
    """Our decoder over the folder of model.path."""

    def trials(self, config: Config) -> list[Mapping[str, Any]]:
        """Every precision of this device."""
        return dtypes(config)

    def open(self, config: Config, console: Console) -> Opening:
        """Load model.path; the reasons are the loader's. A kind with an engine of its own is left to that."""
        if config.model.path == BUNDLED:
            return refused("no model folder is configured (model.path is 'tiny')")
        try:
            if other := kind_at(config.model.path).engine:
                return refused(f"{config.model.path} is for engine {other}")
        except HildaError as error:
            return refused(str(error))
        return native("transformers", config, console)


def native(name: str, config: Config, console: Console, made: type[NativeSession] = NativeSession) -> Opening:
    """A native session, of class `made`, over config.model, or why it cannot be loaded."""
    try:
        loaded = load_model(config.model, console)
        loaded.require("decode")
        loaded = int8(loaded) if config.decode.int8 else loaded
    except HildaError as error:
        return refused(str(error))
    session = made(name, loaded, config)
    for caution in session.notes:
        console.warn(caution)
    return Opening(session.capability, session)
