# What a forked process does to itself before it runs foreign code: scratch folder, another user, limits, filters.
# Entry points: Bounds, enter, spaces, SPACES.
# A plan is the set of walls a warden uses; the first one a machine can carry is taken. Standard library only.
"""A process behind walls."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hildanext.measure.sandbox import filesystem, kernel, refusals

NOBODY = 65534
FIRST_USER = 2_000_000_000
THREADS = 64
SCRATCH_FILES = 16
SPACES = {"user": kernel.NEW_USER, "pids": kernel.NEW_PIDS, "mounts": kernel.NEW_MOUNTS | kernel.NEW_IPC}
PLANS: tuple[frozenset[str], ...] = tuple(
    frozenset(plan.split())
    for plan in ("user mounts pids network uid", "mounts pids network uid", "user pids network uid", "pids network uid",
                 "user pids uid", "network uid", "uid", "user pids network", "pids network", "network", "")
)  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """Limits of one process, as sandbox.Limits; outside: its user number outside the sandbox."""

    cpu_seconds: int
    memory_bytes: int
    file_bytes: int
    open_files: int
    processes: int
    outside: int


def spaces(plan: Iterable[str]) -> int:
    """The namespaces a program's process is born into under a plan."""
    return sum(SPACES.get(name, 0) for name in plan)


def enter(plan: frozenset[str], bounds: Bounds, folder: str) -> dict[str, str]:
    """Put this process behind the walls of a plan and into its scratch folder; for every wall "" where it stands, else
    why not. OSError where a wall of the plan itself does not stand."""
    os.setsid()
    inside = NOBODY if "user" in plan else bounds.outside
    if "mounts" in plan:
        filesystem.scratch(inside, SCRATCH_FILES * bounds.file_bytes)
    if "user" in plan or bounds.outside >= FIRST_USER:
        with contextlib.suppress(PermissionError):
            os.setgroups([])
        os.setresgid(inside, inside, inside)
        os.setresuid(inside, inside, inside)
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)
    _limit(bounds, "user" in plan or bounds.outside >= FIRST_USER)
    if sys.platform == "linux":
        kernel.drop_capabilities()
    found = dict.fromkeys(plan, "")
    for name, raise_wall in _filters(plan, bounds, folder).items():
        try:
            raise_wall()
            found[name] = ""
        except OSError as error:
            found[name] = error.strerror or str(error)
    return found


def _filters(plan: frozenset[str], bounds: Bounds, folder: str) -> dict[str, Callable[[], Any]]:
    own = 0 if "pids" in plan else os.getpid()
    read = ("/",) if "mounts" in plan else filesystem.READABLE
    return {
        "parent-death": lambda: kernel.control(kernel.DEATH_SIGNAL, signal.SIGKILL),
        "undumpable": lambda: kernel.control(kernel.DUMPABLE, 0),
        "no-new-privileges": lambda: kernel.control(kernel.NO_NEW_PRIVILEGES, 1),
        "landlock": lambda: kernel.landlock(read, (folder, *filesystem.DEVICES)),
        "seccomp": lambda: _refuse(own, bounds.processes > 0, "mounts" in plan),
    }


def _refuse(own: int, processes: bool, marking: bool) -> None:
    if not refusals.supported():
        raise OSError(0, "system call numbers of this machine are not known")
    kernel.restrict(refusals.instructions(own, processes, marking))


def _limit(bounds: Bounds, counted: bool) -> None:
    import resource

    wanted = {
        "RLIMIT_CPU": bounds.cpu_seconds, "RLIMIT_AS": bounds.memory_bytes, "RLIMIT_FSIZE": bounds.file_bytes,
        "RLIMIT_NOFILE": bounds.open_files, "RLIMIT_CORE": 0,
    }  # fmt: skip
    if counted:
        wanted["RLIMIT_NPROC"] = 1 + bounds.processes + THREADS
    for name, value in wanted.items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))
