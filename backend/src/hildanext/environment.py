# What this process runs on: versions, commit, platform, threads. Enough, with config.json, to repeat a run. And how
# processes end: whether one lives, with its parent, on a signal.
# Entry points: environment, git_state, versions, file_hash, usable_cores, die_with_parent, extras, alive, StopRequest.
# Reads package metadata only; imports none of the packages.
"""Environment record of a run."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG = 1
PACKAGES = (
    "hildanext", "torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "pydantic", "fastapi",
    "uvicorn", "rich", "bitsandbytes", "peft", "matplotlib", "lm-eval",
)  # fmt: skip


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Installed version of each package, None where it is missing."""
    return {name: _version(name) for name in packages}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any]:
    """{"commit", "dirty"} of the checkout that holds `folder`; both None outside one."""
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return {"commit": None, "dirty": None}
    command = ["git", "-C", str(folder)]
    try:
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}
    if commit.returncode:
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def die_with_parent(parent: int) -> None:
    """In a worker process: end it when the process `parent` that started it ends, however that ends. On Linux the
    kernel kills it, also in the middle of a computation; elsewhere a thread sees to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    above = multiprocessing.parent_process()
    if above is not None:
        above.join()
        os._exit(1)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Versions, commit and dirty flag, platform, cores, thread settings and command line."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")},
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
        "command": sys.argv,
    }


def extras() -> dict[str, list[str]]:
    """Optional extras of this package and, for each, the packages of it that are not installed."""
    found: dict[str, list[str]] = {}
    for requirement in requires("hildanext") or []:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name and extra:
            missing = [] if _version(name.group()) else [name.group()]
            found[extra.group(1)] = found.get(extra.group(1), []) + missing
    return found


def alive(pid: int) -> bool:
    """Whether a process of that number runs; on Windows always yes, so that the heartbeat decides."""
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
