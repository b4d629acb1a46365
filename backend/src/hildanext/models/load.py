# A local model folder, or the bundled pair, as a denoiser with its tokenizer.
# Entry points: load_model, Loaded, kind_at, model_folder, name_of, place, located, choose_dtype, choose_device.
# Which plugin of models/kinds reads the folder stands in its hildanext.json. dtype and device come with their reason.
"""Loading models."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.core.types import Denoiser
from hildanext.data.tokenizers import load_tokenizer
from hildanext.errors import ModelError, first_line
from hildanext.models.backend import capability
from hildanext.models.gguf import folder_of, gguf_at, unpacked
from hildanext.models.hardware import slow_dtype
from hildanext.models.kind import ModelKind, Use, kind_of
from hildanext.models.meta import HildaMeta
from hildanext.progress import Console
from hildanext.run_dir import step_folders

BUNDLED = {"tiny": "child", "tiny-parent": "parent"}
NEW = "new"


@dataclass(frozen=True)
class Loaded:
    """A model ready for use. path: its folder, None for a new one; dtype_reason says why this dtype was taken."""

    denoiser: Denoiser
    tokenizer: Any
    meta: HildaMeta
    path: Path | None
    dtype: torch.dtype
    dtype_reason: str
    device: torch.device

    @property
    def kind(self) -> ModelKind:
        """The plugin that loaded it and saves it."""
        return kind_of(self.meta)

    def require(self, use: Use) -> None:
        """ModelError where models of this kind cannot be used so."""
        if use not in self.kind.uses:
            raise ModelError(
                f"model {self.path or NEW}: a model of kind {self.meta.kind} cannot be used to {use}, only to"
                f" {', '.join(sorted(self.kind.uses))}; use another model"
            )


def place(path: str) -> Path:
    """The folder of a bundled name; of a run, the model it wrote; of a GGUF file, the one it is read into (see
    model_folder); else the path as it is, ~ being the home folder."""
    if path in BUNDLED:
        return Path(__file__).parent.parent / "tiny" / BUNDLED[path]
    folder = Path(path).expanduser()
    if (file := gguf_at(folder)) is not None:
        return folder_of(file)
    return folder / "model" if (folder / "status.json").is_file() else folder


def located(config: Config) -> Config:
    """The configuration with the folders that model.path and tokenize.tokenizer stand for (a run, a GGUF file, ~, for
    the tokenizer also a bundled name), for those who read files there and know nothing of models."""
    model, settings = config.model, config.tokenize
    words = settings.tokenizer
    found = model.model_copy(update={"path": _folder_or(model.path)})
    known = settings.model_copy(update={"tokenizer": str(place(words)) if words in BUNDLED else _folder_or(words)})
    return config.model_copy(update={"model": found, "tokenize": known})


def _folder_or(path: str) -> str:
    if path in (*BUNDLED, NEW, "auto", "storyworld"):
        return path
    if gguf_at(Path(path).expanduser()) is not None:
        return str(model_folder(path))
    return str(place(path)) if place(path).is_dir() else path


def name_of(folder: Path) -> str:
    """What a model is called: its folder, and where that is one of a run (model, merged, checkpoints/step-N), the run
    with it; a bundled one by the name it is asked for."""
    whole = folder.absolute()
    if bundled := [name for name in BUNDLED if place(name).absolute() == whole]:
        return bundled[0]
    run = whole.parent.parent if whole.parent.name == "checkpoints" else whole.parent
    if whole.name == "model" and run.name:
        return run.name
    return f"{run.name}-{whole.name}" if (run / "status.json").is_file() else whole.name


def model_folder(path: str, field: str = "model.path") -> Path:
    """The folder a `model.path`, or another field, names; one of a GGUF file is written where it is not there yet.
    ModelError where it is missing or holds neither config.json nor hildanext.json of another kind."""
    file = None if path in BUNDLED else gguf_at(Path(path).expanduser())
    folder = place(path) if file is None else unpacked(file)
    if (folder / "config.json").is_file() or HildaMeta.read(folder).kind != "hf":
        return folder
    if path in BUNDLED:
        raise ModelError(f"{field} {path!r}: the bundled model is missing from this installation; reinstall hildanext")
    raise ModelError(f"{field} {path!r}: {_missing(Path(path))}")


def _missing(folder: Path) -> str:
    if (folder / "status.json").is_file():
        saved = step_folders(folder / "checkpoints")
        merge = f"`hildanext merge-checkpoints {folder} --last 1` makes a model of it"
        instead = f"its newest checkpoint is {saved[-1]}; {merge}" if saved else "it has no checkpoint either"
        if (folder / "merged" / "config.json").is_file():
            instead = f"its checkpoints were merged into {folder / 'merged'}"
        return f"a run that has not written its model yet; {instead}"
    if (folder / "trainer").is_dir():
        command = f"`hildanext merge-checkpoints {folder.parent.parent} --members {folder.name}`"
        return f"a checkpoint of adapters without their base model; {command} makes a model of it"
    found = "no config.json" if folder.is_dir() else "it is a file" if folder.exists() else "no such folder"
    known = ", ".join((*BUNDLED, NEW))
    return f"no Hugging Face model folder there ({found}); give a local folder, a run, or one of {known}"


def kind_at(path: str) -> ModelKind:
    """The kind of a `model.path`."""
    return kind_of(HildaMeta() if path == NEW else HildaMeta.read(model_folder(path)))


def choose_device(name: str) -> torch.device:
    """`auto`: the first CUDA device, else the CPU. ModelError where the device asked for is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        usable = device.type == "cuda" or float(torch.ones(1, device=device)) == 1.0
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ModelError(
            f"model.device {name!r}: not a device of this machine ({first_line(error)}), expected auto, cpu or cuda[:n]"
        ) from error
    if not usable:
        raise ModelError(f"model.device {name!r}: does not compute, expected auto, cpu or cuda[:n]")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"model.device {name!r}: {torch.cuda.device_count()} CUDA devices are visible; use auto or cpu"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """(dtype, reason). auto: bfloat16 where the hardware multiplies it (compute capability 8.0 and up), else float32.
    Pascal (6.x) has no bfloat16 and multiplies float16 at 1/64 of the rate."""
    if name != "auto":
        return getattr(torch, name), "asked for"
    level = capability(device)
    if level is None:
        return torch.float32, f"{device.type}: the same result on every processor; bfloat16 on request"
    if level >= (8, 0):
        return torch.bfloat16, f"compute capability {level[0]}.{level[1]} multiplies bfloat16"
    return torch.float32, f"compute capability {level[0]}.{level[1]} has no bfloat16 units"


def new_tokenizer(model: ModelConfig) -> Path:
    """The folder of a new model's tokenizer. ModelError where none is named."""
    if not model.new.tokenizer:
        raise ModelError("model.new.tokenizer: no folder is named; give one that holds tokenizer.json")
    return place(model.new.tokenizer)


def load_model(model: ModelConfig, console: Console | None = None) -> Loaded:
    """The model of a configuration on its device, in evaluation mode. ModelError for a folder that cannot be used."""
    device = choose_device(model.device)
    dtype, reason = choose_dtype(model.dtype, device)
    folder = None if model.path == NEW else model_folder(model.path)
    meta = HildaMeta() if folder is None else HildaMeta.read(folder)
    kind = kind_of(meta)
    tokenizer = load_tokenizer(new_tokenizer(model) if folder is None else kind.home(folder))
    denoiser = kind.load(folder, model, tokenizer, meta, device, dtype)
    facts = {"mask_id": denoiser.mask_id, "shift": denoiser.shift, "base": None, "kind": kind.becomes or meta.kind}
    meta = meta.model_copy(update=facts)
    if slow := slow_dtype(dtype, device, "model.dtype"):
        (warnings.warn if console is None else console.warn)(slow)
    if console is not None:
        name = kind.label(denoiser)
        console.say(f"model {model.path}: {name}, {device}, {dtype} ({reason}), mask id {denoiser.mask_id}")
    return Loaded(denoiser, tokenizer, meta, folder, dtype, reason, device)
