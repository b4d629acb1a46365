# The wardens of this process: started when first needed, one per program at a time, reused, gone with the process.
# Entry points: Job, verdict, standing.
# The first plan of cell.PLANS that this machine can carry is used by all of them.
"""A pool of wardens."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext.errors import RunError
from hildanext.measure.sandbox import cell

HERE = Path(__file__).resolve().parent
START = """
import sys, types
for name, folder in zip(("hildanext", "hildanext.measure", "hildanext.measure.sandbox"), sys.argv[3:]):
    package = types.ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package
from hildanext.measure.sandbox.warden import main
main(int(sys.argv[1]), sys.argv[2])
"""
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin"}
LATE = 5.0
LARGEST_OUTPUT = 2000


@dataclass(frozen=True)
class Job:
    """A program's text, its tests' (None: in the same text) and the limits as Warden.run reads them."""

    source: str
    tests: str | None
    limits: dict[str, Any]


class _Started:
    def __init__(self, plan: frozenset[str]) -> None:
        self.socket, theirs = socket.socketpair()
        arguments = [
            str(theirs.fileno()),
            " ".join(plan),
            *(str(folder) for folder in (HERE.parents[1], HERE.parent, HERE)),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-c", START, *arguments], env=ENVIRONMENT, cwd="/",
            start_new_session=True, pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        self.socket.settimeout(90)
        try:
            told = json.loads(self.socket.recv(4096) or b'{"refused": "it ended at once"}')
        except (OSError, ValueError) as error:
            told = {"refused": str(error)}
        self.walls: dict[str, str] | None = told.get("walls")
        self.refused: str = told.get("refused", "")

    def do(self, job: Job) -> tuple[dict[str, Any], bytes]:
        """The warden's answer and the end of what the program printed. RunError where the warden does not answer."""
        read, write = os.pipe()
        texts = [_filed(job.source), _filed(job.source if job.tests is None else job.tests)]
        try:
            header = json.dumps(job.limits | {"whole": job.tests is None}).encode()
            socket.send_fds(self.socket, [header], [*texts, write])
        except OSError as error:
            os.close(read)
            raise RunError(f"sandbox: its process has ended ({error}); run the task again") from None
        finally:
            for descriptor in (*texts, write):
                os.close(descriptor)
        try:
            return self._follow(read, time.monotonic() + job.limits["wall_seconds"] + LATE)
        finally:
            os.close(read)

    def _follow(self, output: int, deadline: float) -> tuple[dict[str, Any], bytes]:
        os.set_blocking(output, False)
        poll = select.poll()
        for descriptor in (output, self.socket.fileno()):
            poll.register(descriptor, select.POLLIN)
        tail, answer = b"", None
        while answer is None and (rest := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(1000 * rest):
                if descriptor != output:
                    answer = self.socket.recv(4096)
                elif part := os.read(output, 1 << 16):
                    tail = (tail + part)[-LARGEST_OUTPUT:]
                else:
                    poll.unregister(output)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(output, 1 << 16):
                tail = (tail + part)[-LARGEST_OUTPUT:]
        if not answer:
            raise RunError("sandbox: its process gave no verdict; run the task again")
        return json.loads(answer), tail

    def end(self) -> None:
        """End the warden; its programs go with it."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


class _Pool:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[_Started] = []
        self.plans: list[frozenset[str]] = list(cell.PLANS if sys.platform == "linux" else cell.PLANS[-1:])
        self.refused: dict[str, str] = {}
        self.is_settled = False

    def taken(self) -> _Started:
        with self.lock:
            while self.idle:
                one = self.idle.pop()
                if one.process.poll() is None:
                    return one
                one.end()
            if not self.is_settled:
                return self._first()
        return _Started(self.plans[0])

    def _first(self) -> _Started:
        while self.plans:
            found = _Started(self.plans[0])
            if found.walls is not None:
                self.is_settled = True
                return found
            found.end()
            lost = self.plans[0] - (self.plans[1] if len(self.plans) > 1 else frozenset())
            self.refused |= dict.fromkeys(lost, found.refused)
            del self.plans[0]
        raise RunError("sandbox: Python cannot start a process of its own here; see docs/sandbox.md")

    def give_back(self, one: _Started) -> None:
        with self.lock:
            self.idle.append(one)

    def end(self) -> None:
        with self.lock:
            while self.idle:
                self.idle.pop().end()

    def forget(self) -> None:
        """In a forked child: the wardens are the parent's."""
        self.lock = threading.Lock()
        for one in self.idle:
            one.socket.close()
        self.idle = []


_POOL = _Pool()
atexit.register(_POOL.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.forget)


def verdict(job: Job) -> tuple[dict[str, Any], bytes, dict[str, str]]:
    """A warden's answer {"passed", "reason"}, the end of the output, and the walls; a lost warden is replaced once."""
    for last in (False, True):
        one = _POOL.taken()
        try:
            answer, output = one.do(job)
        except RunError:
            one.end()
            if last:
                raise
        except BaseException:
            one.end()
            raise
        else:
            _POOL.give_back(one)
            return answer, output, one.walls or {}
    raise AssertionError


def standing() -> dict[str, str]:
    """For every wall "" where it stands on this machine, else why not."""
    one = _POOL.taken()
    _POOL.give_back(one)
    return _POOL.refused | (one.walls or {})


def _filed(text: str) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("text", os.MFD_CLOEXEC)
    else:
        descriptor, name = tempfile.mkstemp(prefix="hildanext-sandbox-")
        Path(name).unlink()
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
