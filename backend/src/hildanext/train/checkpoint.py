# Checkpoints: a model's files plus trainer/ (optimiser, step, the state of the work), whole or absent.
# Entry points: Checkpoints (save, begin, newest, best, set_aside), Writing, read_state, read_tensors, require_whole.
# A folder named step-NNNNNN is finished: it is written under a dotted name and renamed last. Steps are numbers: with
# more digits than six, a later one still comes later. What a checkpoint holds of the model is in model_files.py.
"""Checkpoints of a training run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from hildanext.disk import REPLACED, damage, fingerprints, swap_in, write_atomic
from hildanext.errors import HildaError, RunError, cure, first_line
from hildanext.run_dir import step_folders
from hildanext.train.distributed import Ranks

STATE = Path("trainer") / "state.json"
TENSORS = Path("trainer") / "work.pt"
OPTIMIZER = Path("trainer") / "optimizer.pt"
ASIDE = "aside"
POINTER = b"version https://git-lfs"
UNREADABLE = (OSError, EOFError, pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
"""What torch.load, and an optimiser that is given what it gave, raise over files that are not what was written."""
ADVICE = "resume from another checkpoint, or restore the file"


def read_state(folder: Path) -> dict[str, Any]:
    """The trainer state of a checkpoint. HildaError where the folder is none, or the file is not what was written."""
    state = _read(folder)
    state.pop("files", None)
    return state


def _read(folder: Path) -> dict[str, Any]:
    if found := _no_file(folder / STATE):
        raise HildaError(f"{folder / STATE}: {found}; {ADVICE}")
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


def _no_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            begins = file.read(len(POINTER))
    except OSError:
        return ""
    pointer = "a Git LFS pointer, the file itself was not fetched (git lfs pull)" if begins == POINTER else ""
    return pointer or ("" if begins else "empty (0 bytes)")


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def require_whole(folder: Path) -> None:
    """HildaError where a file of a checkpoint is not as its state says it was written; of one from before states knew
    their files, where a file of the trainer is empty or cut or the state lacks what every state of then had."""
    state = _read(folder)
    known = state.get("files")
    found = damage(folder, known, str(STATE)) if known is not None else _cut(folder) or _lacking(state)
    if found:
        raise HildaError(f"{folder}: damaged: {found}; {ADVICE}")


def _cut(folder: Path) -> str:
    for path in (folder / TENSORS, folder / OPTIMIZER):
        if path.is_file() and not zipfile.is_zipfile(path):
            return f"{path.relative_to(folder)} is {_no_file(path) or 'cut or not what was written'}"
    return ""


def _lacking(state: Mapping[str, Any]) -> str:
    lost = [name for name in ("skipped", "loader") if state.get(name) is None]
    return f"{STATE} lacks {' and '.join(lost)}" if lost else ""


def read_tensors(folder: Path) -> dict[str, Any]:
    """The entries of a checkpoint's state that hold tensors; empty where there are none."""
    path = folder / TENSORS
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True)) if path.is_file() else {}
    except UNREADABLE as error:
        raise HildaError(f"{path}: damaged, it cannot be read ({first_line(error)}); {ADVICE}") from error


def _nll(folder: Path) -> float | None:
    try:
        nll = read_state(folder).get("eval_nll")
    except HildaError:
        return None
    return nll if isinstance(nll, int | float) else None


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
class Writing:
    """A checkpoint whose files are being written while training goes on."""

    checkpoints: Checkpoints
    temporary: Path
    final: Path
    state: Mapping[str, Any]
    ranks: Ranks
    parts: tuple[Future[Any], ...]

    @property
    def done(self) -> bool:
        """Whether this rank's part is written."""
        return all(part.done() for part in self.parts)

    def finish(self) -> Path:
        """Wait for what is left, then publish it; every rank calls it. RunError as of Checkpoints.save."""
        with self.checkpoints._careful(self.final, self.temporary):
            for part in self.parts:
                part.result()
            self.ranks.wait()
            self.checkpoints._complete(self.temporary, self.final, self.state, self.ranks)
        return self.final


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run. Keeps the `last` newest and the `best` of lowest evaluation NLL."""

    folder: Path
    last: int = 2
    best_count: int = 1

    def all(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return [path for path in step_folders(self.folder) if (path / STATE).is_file()]

    def newest(self) -> Path | None:
        """The newest finished checkpoint."""
        return next(reversed(self.all()), None)

    def best(self, count: int) -> list[Path]:
        """The `count` checkpoints of lowest evaluation NLL, best and earliest first; those never evaluated and those
        whose state is damaged are left out."""
        known = [(nll, path) for path in self.all() if (nll := _nll(path)) is not None]
        return [path for _, path in sorted(known, key=lambda pair: pair[0])][:count]

    def set_aside(self, step: int) -> list[Path]:
        """Move the checkpoints of later steps than `step` into a folder of their own, where they are neither resumed
        from nor merged nor pruned: what comes now is another line. Returns where they are."""
        moved = []
        for path in step_folders(self.folder):
            if int(path.name.removeprefix("step-")) > step:
                place, number = self.folder / ASIDE / path.name, 1
                while place.exists():
                    place, number = place.with_name(f"{path.name}.{number}"), number + 1
                place.parent.mkdir(exist_ok=True)
                moved.append(path.rename(place))
        return moved

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[Path], None], ranks: Ranks) -> Path:
        """Finish `write(folder)` (every rank calls it) plus the state (JSON values; entries that hold tensors go to a
        file of their own) as step-NNNNNN, then prune. RunError, with every older checkpoint whole, where the disk is
        full or cannot be written."""

        def wholly(folder: Path) -> Sequence[Future[Any]]:
            write(folder)
            return ()

        return self.begin(step, state, wholly, ranks).finish()

    def begin(
        self, step: int, state: Mapping[str, Any], start: Callable[[Path], Sequence[Future[Any]]], ranks: Ranks
    ) -> Writing:
        """As save, with a `start` that returns at once what is still being written; finish() of the result is due, on
        every rank at the same step."""
        final, temporary = self.folder / f"step-{step:06d}", self.folder / f".step-{step:06d}.tmp"
        with self._careful(final, temporary):
            self._prepare(temporary, ranks)
            return Writing(self, temporary, final, state, ranks, tuple(start(temporary)))

    @contextmanager
    def _careful(self, final: Path, temporary: Path) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            advice = cure(error, "look at the folder and its file system", self.folder)
            shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, OSError | SafetensorError | RuntimeError | RunError):
                raise
            older = self.newest()
            rest = f"{older} is whole; {advice} and resume from it" if older else f"there is no older one; {advice}"
            raise RunError(f"{final}: the checkpoint cannot be written ({first_line(error)}); {rest}") from error

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
            raise OSError(errno.ENOSPC, f"disk full: {free} bytes free, the last checkpoint had {need}")

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
