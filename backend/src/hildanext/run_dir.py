# One run on disk: config, environment, status with heartbeat, metrics, log, report, plots, checkpoints.
# Entry points: RunDir.create / RunDir.open, write_atomic, replacing, swap_in, read_status, list_runs.
# Files and folders are replaced by write-then-rename: whole or not at all. The names beside a folder are fixed, so what
# a kill left is removed by the next write. `running` without a live process or a recent heartbeat reads `lost`.
"""Run directories."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

from hildanext.config import Config, resolved_json
from hildanext.environment import environment
from hildanext.errors import HildaError, Interrupted

STATES = ("queued", "running", "done", "failed", "cancelled", "lost")
HEARTBEAT_SECONDS = 5.0
LOST_AFTER_SECONDS = 60.0


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file by write-then-rename: a reader sees the old file or the new one, never half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new empty folder that takes the target's place when the block ends well; otherwise the target stays as it was
    and the new folder is removed."""
    fresh = _beside(target, "new")
    _recover(target)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    swap_in(fresh, target)


def swap_in(fresh: Path, target: Path) -> None:
    """Rename a finished folder to `target`; a folder of that name is renamed away first and then removed."""
    old = _beside(target, "old")
    _recover(target)
    _by_umask(fresh)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _by_umask(folder: Path) -> None:
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o666
    probe.unlink()
    for path in folder.rglob("*.safetensors"):  # safetensors writes them for the owner alone
        path.chmod(mode)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def _recover(target: Path) -> None:
    old = _beside(target, "old")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # os.kill(pid, 0) would send Ctrl-C there; the heartbeat decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _not_zombie(pid)


def _not_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def read_status(path: Path) -> dict[str, Any]:
    """status.json of a run, its state `lost` where it says running but the process is gone or silent for a minute."""
    try:
        status: dict[str, Any] = json.loads((path / "status.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HildaError(f"{path}: not a run directory (no status.json); `hildanext runs` lists them") from None
    except json.JSONDecodeError as error:
        raise HildaError(f"{path}/status.json: not valid JSON ({error}); the run cannot be read") from None
    age = time.time() - float(status.get("heartbeat", 0.0))
    silent = age > LOST_AFTER_SECONDS or not _alive(int(status.get("pid", 0)))
    if status.get("state") == "running" and silent:
        status["state"] = "lost"
    return status


def list_runs(root: Path) -> list[dict[str, Any]]:
    """The status of every run below `root`, newest first, each with its `id`."""
    found = [{"id": path.parent.name, **read_status(path.parent)} for path in sorted(root.glob("*/status.json"))]
    return sorted(found, key=lambda status: str(status.get("started", "")), reverse=True)


@dataclass
class RunDir:
    """One run on disk. Values given to status() are merged into status.json; log() appends one line to log.txt."""

    path: Path
    _status: dict[str, Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def create(cls, config: Config, command: str, path: Path | None = None) -> RunDir:
        """A new run directory <paths.runs>/<command>-<time>-<id> (or `path`) in state queued, with config.json."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        run = cls(path or Path(config.paths.runs) / f"{command}-{stamp}-{uuid4().hex[:6]}")
        run.path.mkdir(parents=True, exist_ok=True)
        write_atomic(run.path / "config.json", resolved_json(config, command))
        run.status(state="queued", command=command, started=_now(), step=0)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run directory; HildaError where it is none."""
        return cls(path, read_status(path))

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """Folder of plots, created."""
        folder = self.path / "plots"
        folder.mkdir(exist_ok=True)
        return folder

    def status(self, **values: Any) -> None:
        """Merge values into status.json and renew the heartbeat."""
        with self._lock:
            self._status |= values | {"heartbeat": time.time(), "pid": os.getpid()}
            write_atomic(self.path / "status.json", json.dumps(self._status, indent=2) + "\n")

    def log(self, text: str) -> None:
        """Append one line, with the time, to log.txt."""
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{_now()} {text}\n")

    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file of the run."""
        write_atomic(self.path / name, json.dumps(value, indent=2) + "\n")

    def environment(self, **known: Any) -> None:
        """env.json: versions, commit, threads, platform, and what the caller knows (device, dtype and why, hashes)."""
        self.write_json("env.json", environment() | known)

    @contextmanager
    def running(self) -> Iterator[RunDir]:
        """State running with a heartbeat; done at the end, failed on an error, cancelled on an interrupt."""
        self.status(state="running")
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        beat.start()
        try:
            yield self
        except (KeyboardInterrupt, Interrupted) as error:
            self._finish(stop, beat, "cancelled", str(error) or "interrupted")
            raise
        except BaseException as error:
            self._finish(stop, beat, "failed", f"{type(error).__name__}: {error}")
            raise
        self._finish(stop, beat, "done", "")

    def _finish(self, stop: threading.Event, beat: threading.Thread, state: str, error: str) -> None:
        stop.set()
        beat.join()
        self.status(state=state, error=error, ended=_now())

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            self.status()


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a flag that a loop reads between steps; a second signal interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
