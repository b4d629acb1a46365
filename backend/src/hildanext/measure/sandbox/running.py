# Runs a generated program and its tests in processes of their own, behind the walls this machine's kernel offers.
# Entry points: Limits, Execution, run_program, Wall, walls, warning, TESTS.
# What is guaranteed, what is not, and which wall stops what: docs/sandbox.md.
"""Sandbox for generated code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from hildanext.errors import RunError
from hildanext.measure.sandbox.wardens import Job, standing, verdict

TESTS = "# --- tests ---"
NAMES = {
    "mounts": "a file system of its own: Python's files read-only, one scratch folder in memory",
    "pids": "a process namespace: nothing outside is seen or signalled, nothing inside survives",
    "network": "a network namespace without a network",
    "user": "a user namespace: no rights outside, processes counted apart",
    "uid": "another user than root",
    "landlock": "Landlock: files outside the scratch folder and Python's own, TCP, signals",
    "seccomp": "a seccomp filter: no sockets, tracing, other processes' limits, programs, kernel interfaces",
    "no-new-privileges": "no privileges from set-user-id programs",
    "parent-death": "ended with its parent",
    "undumpable": "memory closed to other processes of the same user",
}
NEEDED = (("mounts", "landlock"), ("pids", "seccomp"), ("network", "seccomp"))


@dataclass(frozen=True)
class Limits:
    """cpu_seconds and wall_seconds of the program, memory and file size in bytes (its scratch folder holds 16 such
    files), open files and further processes as counts. Threads are not processes; there may be 64."""

    cpu_seconds: int = 5
    wall_seconds: float = 10.0
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    open_files: int = 32
    processes: int = 0


@dataclass(frozen=True)
class Execution:
    """passed: the program reached its end and its tests held. reason: passed | failed | timeout | no nonce (it left
    before its end); output: the end of what it printed. isolated: whether it had a network namespace of its own."""

    passed: bool
    reason: str
    output: str
    isolated: bool


@dataclass(frozen=True)
class Wall:
    """stands: whether this machine has it; guards: what it is for; why: what the kernel said where not."""

    name: str
    stands: bool
    guards: str
    why: str


def run_program(source: str, limits: Limits | None = None, tests: str | None = None) -> Execution:
    """Run a program and say whether it reached its end and its tests held. `tests`, or what follows the last line TESTS
    of the source, runs in another process than the program, to which only plain data comes; without either, the
    asserts at the source's end are taken. RunError on Windows, which has none of the limits. See docs/sandbox.md."""
    if os.name != "posix":
        raise RunError("sandbox: Windows has no resource limits; run this task under Linux, macOS or WSL")
    if tests is None:
        before, mark, after = source.rpartition(f"\n{TESTS}\n")
        source, tests = (before, after) if mark else (source, None)
    answer, output, found = verdict(Job(source, tests, asdict(limits or Limits())))
    text = output.decode("utf-8", "replace").strip()
    return Execution(answer["passed"], answer["reason"], text, found.get("network") == "")


def walls() -> tuple[Wall, ...]:
    """Every wall the sandbox knows, and whether it stands on this machine. Starts a sandbox process the first time."""
    found = standing() if os.name == "posix" else {}
    return tuple(
        Wall(name, found.get(name) == "", guards, found.get(name, "not tried here")) for name, guards in NAMES.items()
    )


def warning(found: Sequence[Wall]) -> str:
    """A line for the user where code written to break out could: no wall of a needed pair stands. Else empty."""
    stands = {wall.name for wall in found if wall.stands}
    missing = [" or ".join(pair) for pair in NEEDED if not stands & set(pair)]
    if not missing:
        return ""
    return (
        f"sandbox: {len(stands)} of {len(found)} walls stand here (missing: {', '.join(missing)}): generated code is "
        "stopped by limits only; run it in a container or virtual machine (docs/sandbox.md)"
    )
