# Checkpoints: a model's files plus trainer/ (optimiser, step, the state of the work), whole or absent.
# Entry points: Checkpoints (save, newest, best), read_state, read_tensors, require_whole, ModelFiles (what is on disk).
# A folder named step-NNNNNN is finished: it is written under a dotted name and renamed last. A checkpoint of a whole
# model is a Hugging Face folder; of an adapter run, the adapter beside the base's name. Under FSDP2 every rank writes
# its part of the optimiser and the first rank the gathered model.
"""Checkpoints of a training run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hildanext.disk import REPLACED, damage, fingerprints, swap_in, write_atomic
from hildanext.errors import HildaError, RunError
from hildanext.models.denoiser import HFDenoiser, hugging_face, module, network
from hildanext.models.load import Loaded
from hildanext.models.lora import adapter_facts, adapter_state, load_adapter, merge_adapter
from hildanext.models.meta import HildaMeta
from hildanext.models.save import save_model, write_model
from hildanext.train.distributed import Ranks
from hildanext.train.optim import MuonWithAdamW

STATE = Path("trainer") / "state.json"
TENSORS = Path("trainer") / "work.pt"
ADAPTER = Path("trainer") / "adapter.safetensors"
OPTIMIZER = Path("trainer") / "optimizer.pt"
SHARDS = Path("trainer") / "shards"
ADVICE = "resume from another checkpoint, or restore the file"


def read_state(folder: Path) -> dict[str, Any]:
    """The trainer state of a checkpoint. HildaError where the folder is none, or the file is not what was written."""
    state = _read(folder)
    state.pop("files", None)
    return state


def _read(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        own, _ = state.pop("sha256", None), int(state["step"])
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise HildaError(
            f"train.resume: {folder} is no checkpoint ({error!r:.200}); give one of runs/<id>/checkpoints/step-*"
        ) from error
    if own is not None and own != _digest(state):
        raise HildaError(f"{folder / STATE}: damaged, it is not what was written; {ADVICE}")
    return state


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def require_whole(folder: Path) -> None:
    """HildaError where a file of a checkpoint is not as its state says it was written. One from before states knew
    their files passes."""
    found = damage(folder, _read(folder).get("files", {}), str(STATE))
    if found:
        raise HildaError(f"{folder}: damaged: {found}; {ADVICE}")


def read_tensors(folder: Path) -> dict[str, Any]:
    """The entries of a checkpoint's state that hold tensors; empty where there are none."""
    path = folder / TENSORS
    return dict(torch.load(path, map_location="cpu", weights_only=True)) if path.is_file() else {}


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensors(part) for part in value.values())
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensors, value)))


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run. Keeps the `last` newest and the `best` of lowest evaluation NLL."""

    folder: Path
    last: int = 2
    best_count: int = 1

    def all(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / STATE).is_file())

    def newest(self) -> Path | None:
        """The newest finished checkpoint."""
        return next(reversed(self.all()), None)

    def best(self, count: int) -> list[Path]:
        """The `count` checkpoints of lowest evaluation NLL, best first; those never evaluated are left out."""
        known = [(read_state(path).get("eval_nll"), path) for path in self.all()]
        return [path for nll, path in sorted(pair for pair in known if pair[0] is not None)][:count]

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[Path], None], ranks: Ranks) -> Path:
        """Finish `write(folder)` (every rank calls it) plus the state (JSON values; entries that hold tensors go to a
        file of their own) as step-NNNNNN, then prune. RunError, with every older checkpoint whole, where the disk is
        full or cannot be written."""
        final, temporary = self.folder / f"step-{step:06d}", self.folder / f".step-{step:06d}.tmp"
        try:
            self._prepare(temporary, ranks)
            write(temporary)
            ranks.wait()
            self._complete(temporary, final, state, ranks)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, OSError | SafetensorError | RuntimeError | RunError):
                raise
            raise RunError(
                f"{final}: the checkpoint cannot be written ({error}); {self.newest() or 'no older one'} is whole; free"
                " the disk and resume from it"
            ) from error
        return final

    def _prepare(self, temporary: Path, ranks: Ranks) -> None:
        if ranks.first:
            self.clear()
            self._room()
        ranks.wait()

    def _complete(self, temporary: Path, final: Path, state: Mapping[str, Any], ranks: Ranks) -> None:
        if ranks.first:
            tensors = {name: value for name, value in state.items() if _holds_tensors(value)}
            plain = {name: value for name, value in state.items() if name not in tensors}
            if tensors:
                (temporary / TENSORS).parent.mkdir(parents=True, exist_ok=True)
                torch.save(tensors, temporary / TENSORS)
            plain = json.loads(json.dumps(plain | {"files": fingerprints(temporary)}))
            write_atomic(temporary / STATE, json.dumps(plain | {"sha256": _digest(plain)}, indent=2) + "\n")
            _flush(temporary)
            swap_in(temporary, final, "checkpoint")
            self.prune()
        ranks.wait()

    def _room(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        newest = self.newest()
        need, free = 0 if newest is None else _size(newest), shutil.disk_usage(self.folder).free
        if need > free:
            raise OSError(f"disk full: {free} bytes free, the last checkpoint had {need}")

    def prune(self) -> None:
        """Remove every checkpoint that is neither among the newest nor among the best."""
        keep = {*self.all()[-self.last :], *self.best(self.best_count)}
        for path in self.all():
            if path not in keep:
                self._remove(path)

    def clear(self) -> None:
        """Remove what killed or failed writes left; a checkpoint that was being replaced comes back."""
        for path in self.folder.glob(f"{REPLACED}/*"):
            if not (self.folder / path.name).exists():
                path.rename(self.folder / path.name)
        for path in (*self.folder.glob(".step-*"), *self.folder.glob(REPLACED)):
            shutil.rmtree(path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        if path.exists():
            doomed = path.with_name(f".{path.name}.old")
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


@dataclass(frozen=True)
class ModelFiles:
    """The model and optimiser in training, as files. adapted: adapters train, and the weights are not written."""

    loaded: Loaded
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    adapted: bool
    meta: HildaMeta

    def write(self, folder: Path) -> None:
        """Weights and optimiser of a checkpoint; every rank calls it, the folder's parent exists."""
        sharded = self.ranks.kind == "fsdp2"
        whole = _gathered(self.loaded, self.ranks) if sharded else self.loaded.denoiser
        if self.ranks.first and self.adapted:
            (folder / ADAPTER).parent.mkdir(parents=True)
            tensors = {name: value.contiguous() for name, value in adapter_state(whole).items()}
            save_file(tensors, folder / ADAPTER, adapter_facts(whole))
        elif self.ranks.first:
            write_model(whole, self.loaded.tokenizer, folder, self.meta)
        self.ranks.wait()
        if sharded:
            _write_shards(self.loaded, self.optimizer, folder)
        elif self.ranks.first:
            save_optimizer(self.optimizer, folder)

    def write_model(self, folder: Path, dtype: torch.dtype | None = None) -> Path:
        """The final model as one plain Hugging Face folder; adapters are merged into the weights, which are then turned
        into `dtype` (None: left as they are)."""
        whole = _gathered(self.loaded, self.ranks) if self.ranks.kind == "fsdp2" else self.loaded.denoiser
        if self.ranks.first:
            merge_adapter(whole)
            if dtype is not None:
                network(whole).to(dtype)
            save_model(whole, self.loaded.tokenizer, folder, self.meta)
        self.ranks.wait()
        return folder

    def restore(self, folder: Path) -> None:
        """Put a checkpoint's adapter and optimiser state into this run. Shards of FSDP2 fit any number of ranks.
        HildaError where it holds no adapter, or an optimiser that does not fit."""
        if self.adapted and not (folder / ADAPTER).is_file():
            raise HildaError(f"train.resume: {folder} holds no adapter; resume with the model.adapter of its config")
        if self.adapted:
            with safe_open(folder / ADAPTER, framework="pt") as file:
                facts = file.metadata() or {}
            load_adapter(self.loaded.denoiser, load_file(folder / ADAPTER), facts, f"train.resume: {folder}")
        if (folder / SHARDS).is_dir():
            _restore_shards(self.loaded, self.optimizer, folder)
        elif self.ranks.kind == "fsdp2":
            raise HildaError(
                f"train.resume: {folder} was written without fsdp2, whose optimiser state cannot be sharded here;"
                " resume with train.parallel=ddp or none"
            )
        else:
            restore_optimizer(self.optimizer, folder)


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """The optimiser's whole state, of one process or of any DDP rank."""
    (folder / OPTIMIZER).parent.mkdir(parents=True, exist_ok=True)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)


def restore_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Put a checkpoint's state into an optimiser with the same groups. HildaError where they differ."""
    try:
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
    except (OSError, ValueError, RuntimeError) as error:
        raise HildaError(
            f"{folder / OPTIMIZER}: does not fit this run ({error}); resume with the optimizer settings of its config"
        ) from error


def _gathered(loaded: Loaded, ranks: Ranks) -> HFDenoiser:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    denoiser = hugging_face(loaded.denoiser)
    state = get_model_state_dict(denoiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    with torch.device("meta"):
        model = type(denoiser.model)(denoiser.config)
    if ranks.first:
        own = {name.removeprefix("model."): value for name, value in state.items()}
        model.load_state_dict(own, assign=True)
        model.tie_weights()
    return HFDenoiser(model, denoiser.mask_id, shift=denoiser.shift, block_grid=denoiser.block_grid)


def _write_shards(loaded: Loaded, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    state = get_optimizer_state_dict(module(loaded.denoiser), _parts(optimizer))
    save({"optimizer": state}, checkpoint_id=str(folder / SHARDS))


def _restore_shards(loaded: Loaded, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    parts = _parts(optimizer)
    state = {"optimizer": get_optimizer_state_dict(module(loaded.denoiser), parts)}
    load(state, checkpoint_id=str(folder / SHARDS))
    set_optimizer_state_dict(module(loaded.denoiser), parts, state["optimizer"])
    if isinstance(optimizer, MuonWithAdamW):
        optimizer.joined()


def _parts(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    # torch gathers a state by parameter: one that is made of two states has to be given as two optimisers
    return optimizer.parts if isinstance(optimizer, MuonWithAdamW) else (optimizer,)
