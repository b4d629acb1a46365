# Jobs: run directories whose command runs in a child process of its own session, a few at a time, in order.
# Entry points: Jobs (start, stop, create, find, every, cancel, delete).
# Nothing about a job lives only in this process: a new server finds queued, running and ended jobs on disk. What a
# job's files or the disk do wrong is told (`problem`) and tried again; it ends neither the queue nor its thread.
"""The job queue."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hildanext.api.confine import Confinement, job_id
from hildanext.api.job_files import FINAL, JobFiles, alive, read_json, whole
from hildanext.api.replies import ApiError
from hildanext.api.schemas import JobBody
from hildanext.config import Config
from hildanext.errors import HildaError, cure, first_line
from hildanext.progress import show_traceback
from hildanext.run_dir import RunDir, new_path, write_atomic

POLL_SECONDS = 0.3
LAUNCHER = (sys.executable, "-m", "hildanext.api.launch")


class Jobs:
    """Queue of jobs under paths.runs. Every public method may be called from any thread."""

    def __init__(self, config: Config) -> None:
        self.config, self.root = config, Path(config.paths.runs)
        self._confinement = Confinement(config)
        self._open: dict[str, JobFiles] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._keys: dict[str, tuple[str, str]] = {}
        self._counts = {"queued": 0, "running": 0}
        self.problem = ""
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        """Take up what is on disk and begin starting queued jobs."""
        for files in self._all():
            record, name = files.record, files.path.name
            if isinstance(record.get("key"), str) and isinstance(record.get("digest"), str):
                self._keys[record["key"]] = (record["digest"], name)
            if record and files.state() not in FINAL or files.unsettled():
                self._open[name] = files
        self._recount()
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the thread has ended although nobody stopped it."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._stopping.is_set()

    def stop(self) -> None:
        """Stop starting jobs; those that run go on."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _all(self) -> list[JobFiles]:
        found = sorted(self.root.glob("*/status.json"))
        return [JobFiles(path.parent) for path in found if not path.parent.is_symlink()]

    def every(self, limit: int) -> list[JobFiles]:
        """The newest runs, jobs or not."""
        return sorted(self._all(), key=_age)[:limit]

    def counts(self) -> dict[str, int]:
        """Open jobs by state, at most one poll old; never waits, so that /health does not."""
        return self._counts

    def _recount(self) -> dict[str, int]:
        states = Counter(files.state() for files in self._open.values())
        self._counts = {"queued": states["queued"], "running": states["running"] + states["cancelling"]}
        return self._counts

    def find(self, text: str) -> JobFiles:
        """A run by id. ApiError 404."""
        path = self.root / job_id(text)
        if path.is_symlink() or not (path / "status.json").is_file():
            raise ApiError(404, "jobs: no job of that id")
        return JobFiles(path)

    def create(self, body: JobBody, key: str | None) -> tuple[JobFiles, bool]:
        """Queue a job, or find the one this idempotency key made; the flag says whether it is new.
        ApiError 409 where the key was used for another body, 429 when the queue is full."""
        config = self.resolved(body)
        digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
        with self._lock:
            known = self._known(key, digest)
            if known is not None:
                return known, False
            if self._recount()["queued"] >= self.config.serve.jobs_queued:
                raise ApiError(429, f"jobs: {self.config.serve.jobs_queued} are waiting already", Retry_After="60")
            record = {**body.model_dump(), "key": key, "digest": digest, "order": time.time_ns()}
            files = self._written(config, body.command, record)
            self._open[files.path.name] = files
            if key:
                self._keys[key] = (digest, files.path.name)
            self._recount()
        return files, True

    def resolved(self, body: JobBody) -> Config:
        """The configuration of a job, confined. ApiError 403 where jobs are switched off or it leads out."""
        if not self.config.serve.jobs:
            raise ApiError(403, "jobs: switched off on this server (serve.jobs)")
        return self._confinement.resolved(body.config, body.set, body.command)

    def _written(self, config: Config, command: str, record: dict[str, Any]) -> JobFiles:
        path = new_path(config, command)
        try:
            RunDir.create(config, command, path).release()
            write_atomic(path / "job.json", json.dumps(record, indent=2) + "\n")
        except (OSError, HildaError) as error:
            shutil.rmtree(path, ignore_errors=True)
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            raise _unwritable(cause, "nothing was started") from error
        return JobFiles(path)

    def _known(self, key: str | None, digest: str) -> JobFiles | None:
        if key is None or key not in self._keys:
            return None
        before, name = self._keys[key]
        if not (self.root / name / "job.json").exists():
            return None
        if before != digest:
            raise ApiError(409, "Idempotency-Key: used before for another job; take a new key")
        return JobFiles(self.root / name)

    def cancel(self, files: JobFiles) -> None:
        """Ask a job to end: at once while it waits, after a checkpoint while it runs. ApiError 409 when it cannot."""
        with self._lock:
            state = files.state()
            if not files.record:
                raise ApiError(409, "jobs: this run was not started here; stop it where it was started")
            if state in FINAL:
                raise ApiError(409, f"jobs: already {state}")
            try:
                if not files.cancelling():
                    _note_cancel(files.path / "cancel.json")
            finally:
                if state == "running":
                    _signal(files, signal.SIGTERM)
            self._guarded(files.path.name, self._settle, files)
            self._recount()

    def delete(self, files: JobFiles) -> None:
        """Remove an ended job's directory. ApiError 409 while it is not ended, or where it is no job."""
        with self._lock:
            if not files.record:
                raise ApiError(409, "jobs: this run was not started here; remove its folder by hand")
            if files.state() not in FINAL:
                raise ApiError(409, f"jobs: {files.state()}; cancel it first")
            self._open.pop(files.path.name, None)
            try:
                shutil.rmtree(files.path)
            except FileNotFoundError:
                return
            except OSError as error:
                raise ApiError(500, f"jobs: {files.path.name} cannot be removed whole ({error.strerror})") from error

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            with self._lock:
                problem, self.problem = self.problem, ""
                self._guarded("queue", self._tick)
                if self.problem and self.problem != problem:
                    with suppress(OSError, ValueError):
                        print(f"warning: {self.problem}", file=sys.stderr, flush=True)

    def _guarded(self, name: str, work: Callable[..., None], *values: Any) -> None:
        try:
            work(*values)
        except BaseException as error:
            self.problem = f"jobs: {name}: {first_line(error)} ({type(error).__name__}); tried again until it works"
            if not isinstance(error, OSError | HildaError):
                show_traceback(error)

    def _tick(self) -> None:
        for name, child in list(self._children.items()):
            if child.poll() is not None:
                self._guarded(name, self._check_started, name, child.returncode)
        for name, files in list(self._open.items()):
            self._guarded(name, self._settle, files)
        states = {name: files.state() for name, files in self._open.items()}
        busy = sum(state in ("running", "cancelling") or name in self._children for name, state in states.items())
        queued = [name for name, state in states.items() if state == "queued" and name not in self._children]
        waiting = sorted((self._open[name] for name in queued), key=_order)
        for files in waiting[: max(0, self.config.serve.jobs_at_once - busy)]:
            self._guarded(files.path.name, self._launch, files)
        self._recount()

    def _launch(self, files: JobFiles) -> None:
        command = [*LAUNCHER, str(files.path)]
        with (files.path / "output.txt").open("ab") as output:
            self._children[files.path.name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def _check_started(self, name: str, code: int) -> None:
        path = self.root / name
        if code and path.exists() and not (path / "process.json").exists():
            write_atomic(path / "exit.json", json.dumps({"code": code, "time": time.time()}))
            write_atomic(path / "process.json", json.dumps({"pid": 0}))
        del self._children[name]

    def _settle(self, files: JobFiles) -> None:
        state = files.state()
        if state == "cancelling":
            asked = float(
                whole(read_json(files.path / "cancel.json").get("time")) or _changed(files.path / "cancel.json")
            )
            if time.time() - asked > self.config.serve.cancel_seconds:
                _signal(files, signal.SIGKILL)
        if state in FINAL:
            if files.unsettled():
                ended = datetime.now(UTC).isoformat(timespec="milliseconds")
                RunDir.open(files.path).status(state=state, ended=ended)
            self._open.pop(files.path.name, None)


def _note_cancel(path: Path) -> None:
    try:
        write_atomic(path, json.dumps({"time": time.time()}))
    except OSError:
        try:
            path.touch()  # an empty file needs no block, so a full disk may still hold it
        except OSError as error:
            raise _unwritable(error, "a running job was sent the signal, a waiting one still waits") from error


def _unwritable(error: OSError, state: str) -> ApiError:
    advice = cure(error, "look at paths.runs and its file system")
    return ApiError(507, f"jobs: the run directory cannot be written ({error.strerror}); {advice}; {state}")


def _order(files: JobFiles) -> int:
    return whole(files.record.get("order")) or 0


def _age(files: JobFiles) -> float:
    order = whole(files.record.get("order"))
    return -order / 1e9 if order is not None else -_changed(files.path / "config.json")


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _signal(files: JobFiles, number: int) -> None:
    process: dict[str, Any] = files.process
    with suppress(ProcessLookupError, PermissionError):
        if alive(process):
            group = int(process["pid"])
            os.killpg(group, number) if number == signal.SIGKILL else os.kill(group, number)
        elif files.status.get("state") == "running" and (own := whole(files.status.get("pid")) or 0) > 1:
            os.kill(own, number)
