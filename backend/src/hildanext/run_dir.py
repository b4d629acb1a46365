# One run on disk: config, environment, status with heartbeat, metrics, log, report, plots, checkpoints.
# Entry points: RunDir.create / RunDir.open, new_path, read_status, list_runs, step_folders, StopRequest.
# Files and folders are replaced as disk.py does, whose functions may be imported from here too. `running` without a
# live process or a recent heartbeat reads `lost`. Who works in a directory holds its .lock, which dies with the
# process; one that goes on writes nothing there before begin().
"""Run directories."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from hildanext.config import Config, resolved_json
from hildanext.disk import clear, hold
from hildanext.disk import replacing as replacing
from hildanext.disk import swap_in as swap_in
from hildanext.disk import write_atomic as write_atomic
from hildanext.environment import StopRequest as StopRequest
from hildanext.environment import alive, environment
from hildanext.errors import FULL, HildaError, Interrupted, RunError, cure
from hildanext.progress import Console

TRAINING = ("convert-wsd", "sft", "on-policy", "rl", "dpo", "latent")
STATES = ("queued", "running", "done", "failed", "cancelled", "lost")
HEARTBEAT_SECONDS = 5.0
LOST_AFTER_SECONDS = 60.0
LOCK = ".lock"
BEFORE_WORK = frozenset({"config.json", "status.json", "env.json", "log.txt", LOCK})
STEP = re.compile("step-([0-9]+)")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


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
    silent = age > LOST_AFTER_SECONDS or not alive(int(_number(status.get("pid"))))
    if status.get("state") == "running" and silent:
        status["state"] = "lost"
    return status


def _number(value: Any) -> float:
    good = isinstance(value, int | float) and abs(value) < 2**62
    return float(value) if good else 0.0


def list_runs(root: Path) -> list[dict[str, Any]]:
    """The status of every run below `root`, the last begun first, each with its `id`; one that cannot be read is
    `lost`, with the reason as its `error`."""
    found = [{"id": path.parent.name, **_status_or_lost(path.parent)} for path in sorted(root.glob("*/status.json"))]
    return sorted(found, key=lambda status: str(status.get("begun") or status.get("started", "")), reverse=True)


def step_folders(folder: Path) -> list[Path]:
    """The folders named step-N, in the order of N, whole checkpoints or not. A copy of another name is none."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def _require_run(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise HildaError(f"{path}: a file, not a run directory; name another with --run-dir")
    if path.is_dir() and not (path / "status.json").exists():
        taken = [name for name in ("config.json", "hildanext.json", "manifest.json") if (path / name).exists()]
        if taken:
            raise HildaError(f"{path}: holds {taken[0]} and is no run directory; name another with --run-dir")


def _require_unused(path: Path, command: str) -> None:
    saved = step_folders(path / "checkpoints")
    if not saved and not (path / "model").is_dir():
        return
    holds = f"the checkpoints of an earlier run, the last {saved[-1].name}" if saved else "the model of an earlier run"
    go_on = "go on from them with --set train.resume=latest, or " if saved and command in TRAINING else ""
    raise HildaError(f"{path}: holds {holds}; {go_on}name another directory with --run-dir")


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
    _held: BinaryIO | None = None
    _waiting: tuple[Config, str] | None = None
    _console: Console | None = None
    _beating: tuple[threading.Event, threading.Thread] | None = None

    @classmethod
    def create(cls, config: Config, command: str, path: Path | None = None, resume: bool = False) -> RunDir:
        """A new run directory <paths.runs>/<command>-<time>-<id> (or `path`) in state queued, with config.json, held
        until running() ends. resume: one that goes on; of a run that has begun nothing is written before begin().
        HildaError where `path` is no run, holds another one's checkpoints or model, or is held by another process."""
        run = cls(path or new_path(config, command), fresh=path is None)
        _require_run(run.path)
        before = run.path.exists()
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run._hold()
            clear(run.path)
            run._waiting = (config, command)
            if not resume:
                _require_unused(run.path, command)
            if not resume or not run._begun():
                run._write()
        except OSError as error:
            run._undo(before)
            raise _unwritable(run.path, error, "--run-dir" if path else "paths.runs or --run-dir") from error
        except HildaError:
            run.release()
            raise
        return run

    def _hold(self) -> None:
        self._held = hold(self.path / LOCK)
        if self._held is None:
            with suppress(HildaError):
                self._status = read_status(self.path)
            raise HildaError(
                f"{self.path}: another process ({self._status.get('pid', 'unknown')}) is at work there; wait for it or"
                " stop it, or name another directory with --run-dir"
            )

    def _begun(self) -> bool:
        if not (self.path / "status.json").exists():
            return False
        status = _status_or_lost(self.path)
        self._status = {"started": status["started"]} if status.get("started") else {}
        return bool(status["state"] != "queued")

    def release(self) -> None:
        """Let other processes work in the directory."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _undo(self, before: bool) -> None:
        self.release()
        if not before:
            shutil.rmtree(self.path, ignore_errors=True)

    def _write(self) -> None:
        assert self._waiting is not None
        config, command = self._waiting
        self.status(state="queued", command=command, started=self._status.get("started") or _now(), step=0)
        write_atomic(self.path / "config.json", resolved_json(config, command))
        self._waiting = None

    def begin(self) -> None:
        """From here on the run that goes on is this one: status, config.json, heartbeat. It may have begun already."""
        if self._waiting is not None:
            self._write()
            self._go()

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
        after an error, and one that has not begun stays as it was."""
        self._console = console
        try:
            if self._waiting is None:
                self._go()
            elif console is not None:
                console.transcript.write = None
            yield self
        except (KeyboardInterrupt, Interrupted) as error:
            with suppress(OSError):  # a full disk must not take the place of what happened
                self._finish("cancelled", str(error) or "interrupted")
            raise
        except BaseException as error:
            with suppress(OSError):
                self._finish("failed", f"{type(error).__name__}: {error}")
            raise
        else:
            self._finish("done", "")
        finally:
            self.release()

    def _go(self) -> None:
        if self._console is not None:
            self._console.transcript.keep(self.log)
        self.status(state="running")
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        self._beating = (stop, beat)
        beat.start()

    def _finish(self, state: str, error: str) -> None:
        if self._waiting is not None:
            return
        if self._beating is not None:
            self._beating[0].set()
            self._beating[1].join()
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


def _unwritable(path: Path, error: OSError, flag: str) -> HildaError:
    kind = RunError if error.errno in FULL else HildaError
    advice = cure(error, f"name another with {flag}")
    return kind(f"{path}: the run directory cannot be written ({error.strerror}); {advice}")
