# Runs generated Python in a child process with limits on time, memory, files and processes, and without network.
# Entry points: Limits, Execution, run_program. The child's own side is sandbox_child.py.
# Success is a nonce the child sends only after the last statement, never an exit code. This stops accidents and simple
# cheats; it is no wall against code written to break out: run untrusted models in a container.
"""Sandbox for generated code."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from hildanext.errors import RunError

LARGEST_OUTPUT = 2000
CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True)
class Limits:
    """cpu_seconds and wall_seconds of the child, memory and file size in bytes, open files and processes as counts."""

    cpu_seconds: int = 5
    wall_seconds: float = 10.0
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    open_files: int = 32
    processes: int = 0


@dataclass(frozen=True)
class Execution:
    """passed: the program reached its end. reason: passed | failed | timeout | no nonce; output: the end of stderr.
    isolated: whether the child had a network namespace of its own besides the refused calls."""

    passed: bool
    reason: str
    output: str
    isolated: bool


def run_program(source: str, limits: Limits | None = None) -> Execution:
    """Run a program to its end in an empty folder, with no inherited environment, and say whether it got there.
    RunError on Windows, which has none of the limits."""
    if os.name != "posix":
        raise RunError("sandbox: Windows has no resource limits; run this task under Linux, macOS or WSL")
    limits = limits or Limits()
    nonce = secrets.token_hex(16)
    sent = json.dumps({"nonce": nonce, "source": source, **asdict(limits)})
    read, write = os.pipe()
    with tempfile.TemporaryDirectory(prefix="hildanext-sandbox-") as folder, tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(CHILD), str(write)], cwd=folder, env={"LC_ALL": "C.UTF-8"},
                pass_fds=(write,), start_new_session=True, stdin=subprocess.PIPE, stdout=errors, stderr=errors,
            )  # fmt: skip
            os.close(write)
            code = _finish(child, sent, limits)
            told = _collect(read)
        finally:
            os.close(read)
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - LARGEST_OUTPUT))
        output = errors.read().decode("utf-8", "replace").strip()
    return _judge(code, told, nonce, output)


def _finish(child: subprocess.Popen[bytes], sent: str, limits: Limits) -> int | None:
    try:
        child.communicate(sent.encode(), timeout=limits.wall_seconds)
        return child.returncode
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _collect(pipe: int) -> list[str]:
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 4096).decode("ascii", "replace").splitlines()
    except BlockingIOError:
        return []


def _judge(code: int | None, told: list[str], nonce: str, output: str) -> Execution:
    isolated = "isolated" in told[:1]
    if code is None or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Execution(False, "timeout", output, isolated)
    if code == 0 and told[1:] == [nonce]:
        return Execution(True, "passed", output, isolated)
    return Execution(False, "no nonce" if code == 0 else "failed", output, isolated)
