# Checkpoints: a model files plus trainer/ (optimiser, step, loader position), whole or absent.
# Entry points: Checkpoints (save, prune, newest, best), read_state, save_optimizer, restore_optimizer.
# A folder named step-NNNNNN is finished: it is written under a dotted name and renamed last. There is no random state
# to save: every generator is seeded from (seed, step, micro-batch).
"""Checkpoints of a training run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from hildanext.errors import HildaError, RunError
from hildanext.run_dir import swap_in, write_atomic
from hildanext.train.distributed import Ranks

STATE = Path("trainer") / "state.json"
OPTIMIZER = Path("trainer") / "optimizer.pt"
SHARDS = Path("trainer") / "shards"


def read_state(folder: Path) -> dict[str, Any]:
    """The trainer state of a checkpoint. HildaError where the folder is none."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise HildaError(
            f"train.resume: {folder} is no checkpoint ({error}); give one of runs/<id>/checkpoints/step-*"
        ) from error
    return state


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
        """Finish `write(folder)` (every rank calls it) plus the state as step-NNNNNN, then prune. RunError, with every
        older checkpoint whole, where the disk is full or cannot be written."""
        final, temporary = self.folder / f"step-{step:06d}", self.folder / f".step-{step:06d}.tmp"
        try:
            self._prepare(temporary, ranks)
            write(temporary)
            ranks.wait()
            self._complete(temporary, final, state, ranks)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunError(
                f"{final}: the checkpoint cannot be written ({error}); {self.newest() or 'no older one'} is whole; free"
                " the disk and resume from it"
            ) from error
        return final

    def _prepare(self, temporary: Path, ranks: Ranks) -> None:
        if ranks.first:
            shutil.rmtree(temporary, ignore_errors=True)
            self._room()
        ranks.wait()

    def _complete(self, temporary: Path, final: Path, state: Mapping[str, Any], ranks: Ranks) -> None:
        if ranks.first:
            write_atomic(temporary / STATE, json.dumps(dict(state), indent=2) + "\n")
            _flush(temporary)
            swap_in(temporary, final)
            self.prune()
        ranks.wait()

    def _room(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        newest = self.newest()
        need, free = 0 if newest is None else _size(newest), shutil.disk_usage(self.folder).free
        if need > free:
            raise OSError(f"disk full: {free} bytes free, the last checkpoint had {need}")

    def prune(self) -> None:
        """Remove every checkpoint that is neither among the newest nor among the best, and unfinished ones."""
        keep = {*self.all()[-self.last :], *self.best(self.best_count)}
        for path in self.all():
            if path not in keep:
                self._remove(path)
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        if path.exists():
            doomed = path.with_name(f".{path.name}.old")
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


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
