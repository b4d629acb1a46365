# One run on disk: config, environment, status with heartbeat, metrics, log, report, plots, checkpoints.
# Entry points: RunDir.create / RunDir.open, new_path, read_status, list_runs, StopRequest.
# Files and folders are replaced as disk.py does, whose functions may be imported from here too. `running` without a
# live process or a recent heartbeat reads `lost`.
"""Run directories."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

from hildanext.config import Config, resolved_json
from hildanext.disk import clear
from hildanext.disk import replacing as replacing
from hildanext.disk import swap_in as swap_in
from hildanext.disk import write_atomic as write_atomic
from hildanext.environment import environment
from hildanext.errors import HildaError, Interrupted
from hildanext.progress import Console

STATES = ("queued", "running", "done", "failed", "cancelled", "lost")
HEARTBEAT_SECONDS = 5.0
LOST_AFTER_SECONDS = 60.0
BEFORE_WORK = frozenset({"config.json", "status.json", "env.json", "log.txt"})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # os.kill(pid, 0) would send Ctrl-C there; the heartbeat decides
    if pid <= 0:
        return False  # 0 and below name groups
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
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
    """status.json of a run, its state `lost` where it says running but the process is gone or silent for a minute.
    HildaError where there is none, or none that can be read."""
    try:
        status = json.loads((path / "status.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HildaError(f"{path}: not a run directory (no status.json); `hildanext runs` lists them") from None
    except OSError as error:
        raise HildaError(f"{path}/status.json: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise HildaError(f"{path}/status.json: not valid JSON ({error}); the run cannot be read") from None
    if not isinstance(status, dict) or not isinstance(status.get("state"), str):
        raise HildaError(f"{path}/status.json: not the status of a run; the run cannot be read")
    age = time.time() - _number(status.get("heartbeat"))
    silent = age > LOST_AFTER_SECONDS or not _alive(int(_number(status.get("pid"))))
    if status.get("state") == "running" and silent:
        status["state"] = "lost"
    return status


def _number(value: Any) -> float:
    good = isinstance(value, int | float) and abs(value) < 2**62
    return float(value) if good else 0.0


def list_runs(root: Path) -> list[dict[str, Any]]:
    """The status of every run below `root`, newest first, each with its `id`; one that cannot be read is `lost`, with
    the reason as its `error`."""
    found = [{"id": path.parent.name, **_status_or_lost(path.parent)} for path in sorted(root.glob("*/status.json"))]
    return sorted(found, key=lambda status: str(status.get("started", "")), reverse=True)


def _require_run(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise HildaError(f"{path}: a file, not a run directory; name another with --run-dir")
    if path.is_dir() and not (path / "status.json").exists():
        taken = [name for name in ("config.json", "hildanext.json", "manifest.json") if (path / name).exists()]
        if taken:
            raise HildaError(f"{path}: holds {taken[0]} and is no run directory; name another with --run-dir")


def _object(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {"unreadable": text}


def _status_or_lost(path: Path) -> dict[str, Any]:
    try:
        return read_status(path)
    except HildaError as error:
        return {"state": "lost", "error": str(error)}


def new_path(config: Config, command: str) -> Path:
    """Where a new run goes: <paths.runs>/<command>-<time>-<id>."""
    return Path(config.paths.runs) / f"{command}-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:6]}"


@dataclass
class RunDir:
    """One run on disk. Values given to status() are merged into status.json; log() appends one line to log.txt."""

    path: Path
    fresh: bool = False
    """Whether this process made the directory up, so that nobody waits for it."""
    _status: dict[str, Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def create(cls, config: Config, command: str, path: Path | None = None) -> RunDir:
        """A new run directory <paths.runs>/<command>-<time>-<id> (or `path`) in state queued, with config.json.
        HildaError where `path` holds something that is no run."""
        run = cls(path or new_path(config, command), fresh=path is None)
        _require_run(run.path)
        run.path.mkdir(parents=True, exist_ok=True)
        clear(run.path)
        run.status(state="queued", command=command, started=_now(), step=0)
        write_atomic(run.path / "config.json", resolved_json(config, command))
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run directory; HildaError where it is none."""
        return cls(path, _status=read_status(path))

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
        with (self.path / "log.txt").open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{_now()} {text}\n")

    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file of the run."""
        write_atomic(self.path / name, json.dumps(value, indent=2) + "\n")

    def environment(self, again: bool = False, **known: Any) -> None:
        """env.json: versions, commit, threads, platform, and what the caller knows (device, dtype and why, hashes).
        again: the run goes on; what it began on stays, and this is added to its list `resumed`."""
        now, path = environment() | known, self.path / "env.json"
        if again and path.is_file():
            first = _object(path)
            now = first | {"resumed": [*first.get("resumed", []), now]}
        self.write_json("env.json", now)

    @contextmanager
    def running(self, console: Console | None = None) -> Iterator[RunDir]:
        """State running with a heartbeat; done at the end, failed on an error, cancelled on an interrupt. What the
        console says, has said and will say is kept in log.txt. A new directory that nothing was written to is removed
        after an error."""
        if console is not None:
            console.transcript.keep(self.log)
        self.status(state="running")
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        beat.start()
        try:
            yield self
        except (KeyboardInterrupt, Interrupted) as error:
            with suppress(OSError):  # a full disk must not take the place of what happened
                self._finish(stop, beat, "cancelled", str(error) or "interrupted")
            raise
        except BaseException as error:
            with suppress(OSError):
                self._finish(stop, beat, "failed", f"{type(error).__name__}: {error}")
            raise
        self._finish(stop, beat, "done", "")

    def _finish(self, stop: threading.Event, beat: threading.Thread, state: str, error: str) -> None:
        stop.set()
        beat.join()
        if state != "done" and self.fresh and {path.name for path in self.path.iterdir()} <= BEFORE_WORK:
            shutil.rmtree(self.path)
            return
        if error:
            self.log(f"{state}: {error}")
        self.status(state=state, error=error, ended=_now())

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # the next beat may find room
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
