# A small process that forks, watches and ends the two processes of every program; it reads neither program nor tests.
# Entry points: Warden, main (started by wardens.py with one socket; a job is a line of JSON with three descriptors).
# Its memory is the mould of both processes, so it holds no secret: texts and output go past it by descriptor.
# Standard library only.
"""The warden of sandboxed programs."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hildanext.measure.sandbox import cell, filesystem, kernel, program, refusals, tester
from hildanext.measure.sandbox.values import Line

PRELOADED = (
    "typing", "math", "re", "collections", "itertools", "functools", "string", "random", "heapq", "bisect", "copy",
    "datetime", "json", "operator", "dataclasses", "enum", "statistics", "hashlib", "decimal", "fractions", "textwrap",
    "resource", "ast", "tokenize", "contextlib", "abc", "warnings", "codecs",
)  # fmt: skip
BY_LIMIT = (-signal.SIGKILL, -signal.SIGXCPU)
LOOK_EVERY, IDLE_LOOK, GRACE = 0.5, 2.0, 1.0
RUNNER, EXAMINER = 0, 1


class Warden:
    """Runs one job after another under a plan. asked: the socket of the process it works for."""

    def __init__(self, asked: socket.socket, plan: frozenset[str]) -> None:
        self.asked, self.plan, self.parent = asked, plan, os.getppid()
        self.is_root = os.getuid() == 0
        if "pids" in plan and refusals.supported():
            refusals.instructions(0, False, "mounts" in plan)
        self.proc = os.open("/proc", os.O_RDONLY | os.O_CLOEXEC) if Path("/proc/self").is_dir() else -1

    def move_in(self) -> dict[str, str]:
        """Raise the walls that all programs share and try the others on a process; for every wall "" where it stands,
        else why not. OSError where a wall of the plan does not stand."""
        shared = kernel.NEW_NETWORK | kernel.NEW_NAMES if "network" in self.plan else 0
        shared |= kernel.NEW_MOUNTS | kernel.NEW_IPC if "mounts" in self.plan else 0
        uid, gid = os.getuid(), os.getgid()
        if shared:
            kernel.unshare(shared | (0 if self.is_root else kernel.NEW_USER))
        if shared and not self.is_root:
            self._map("self", 0, uid, gid)
        if "mounts" in self.plan:
            filesystem.build()
        if sys.platform == "linux":
            kernel.control(kernel.SUBREAPER, 1)
            kernel.control(kernel.DUMPABLE, 1 if "user" in self.plan else 0)
        return self._try()

    def work(self) -> None:
        """Do jobs until the other side has gone."""
        while self._is_asked():
            text, descriptors, _, _ = socket.recv_fds(self.asked, 4096, 3)
            if not text:
                return
            answer = self.run(json.loads(text), *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            if answer is None:
                return
            self.asked.sendall(json.dumps(answer).encode())

    def _is_asked(self) -> bool:
        while os.getppid() == self.parent:
            if select.select([self.asked], [], [], IDLE_LOOK)[0]:
                return True
        return False

    def run(self, job: dict[str, Any], source: int, tests: int, output: int) -> dict[str, Any] | None:
        """Run one program and its tests: {"passed", "reason"}. None where the asking side has gone."""
        folders = [self._folder(role) for role in (RUNNER, EXAMINER)]
        ours, theirs = socket.socketpair()
        runner = self._fork(
            job,
            RUNNER,
            folders[RUNNER],
            lambda _: _run(source, job["whole"], theirs, output),
            {source, theirs.fileno(), output},
        )
        theirs.close()
        report, told = os.pipe()
        examiner = self._fork(
            job, EXAMINER, folders[EXAMINER], lambda _: _examine(tests, job["whole"], ours, (output, told)),
            {tests, ours.fileno(), output, told},
        )  # fmt: skip
        ours.close()
        os.close(told)
        said, in_time = self._listen(report, time.monotonic() + job["wall_seconds"])
        os.close(report)
        tested = _ended(examiner, 0.0 if said is None or not in_time else GRACE)
        ran = _ended(runner, GRACE if tested == tester.LEFT else 0.0)
        self._clear(folders)
        return None if said is None else _verdict(said, in_time, tested, ran)

    def _listen(self, report: int, deadline: float) -> tuple[bytes | None, bool]:
        poll = select.poll()
        poll.register(report, select.POLLIN)
        poll.register(self.asked, select.POLLIN)
        said = b""
        while (rest := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(1000 * min(rest, LOOK_EVERY)):
                if descriptor == self.asked.fileno():
                    return None, False
                part = os.read(report, 64)
                if not part:
                    return said, True
                said += part
            if os.getppid() != self.parent:
                return None, False
        return said, False

    def _fork(
        self, job: dict[str, Any], role: int, folder: str, body: Callable[[dict[str, str]], int], keep: set[int]
    ) -> int:
        outside = cell.FIRST_USER + 2 * os.getpid() + role if self.is_root and "uid" in self.plan else os.getuid()
        names = ("cpu_seconds", "memory_bytes", "file_bytes", "open_files", "processes")
        bounds = cell.Bounds(outside=outside, **{name: job[name] for name in names})
        ready, go = os.pipe()
        pid = kernel.clone(cell.spaces(self.plan))
        if pid == 0:
            try:
                _close_all_but(keep | {ready})
                if os.read(ready, 1) != b"+":
                    os._exit(1)
                os.close(ready)
                walls = cell.enter(self.plan, bounds, folder)
                program.leave(body(walls))
            except SystemExit as error:
                program.leave(error.code if isinstance(error.code, int) else 1 if error.code else 0)
            except BaseException:
                traceback.print_exc()
                program.leave(70)
        try:
            if "user" in self.plan:
                self._map(str(pid), cell.NOBODY, outside, outside if self.is_root else os.getgid())
            os.write(go, b"+")
        finally:
            os.close(ready)
            os.close(go)
        return pid

    def _map(self, who: str, inside: int, uid: int, gid: int) -> None:
        lines = {"uid_map": f"{inside} {uid} 1", "gid_map": f"{inside} {gid} 1"}
        if os.getuid() != 0 and not self.is_root:
            lines = {"setgroups": "deny"} | lines
        for name, text in lines.items():
            handle = os.open(f"{who}/{name}", os.O_WRONLY, dir_fd=self.proc)
            try:
                os.write(handle, text.encode())
            finally:
                os.close(handle)

    def _folder(self, role: int) -> str:
        if "mounts" in self.plan:
            return filesystem.SCRATCH
        folder = tempfile.mkdtemp(prefix="hildanext-sandbox-")
        if self.is_root and "uid" in self.plan:
            user = cell.FIRST_USER + 2 * os.getpid() + role
            os.chown(folder, user, user)
        return folder

    def _clear(self, folders: list[str]) -> None:
        if "pids" not in self.plan and self.proc >= 0:
            _end_orphans(self.proc)
        for folder in () if "mounts" in self.plan else folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _try(self) -> dict[str, str]:
        job = {"cpu_seconds": 5, "memory_bytes": 512 << 20, "file_bytes": 1 << 20, "open_files": 32, "processes": 0}
        folder = self._folder(RUNNER)
        ours, theirs = socket.socketpair()
        pid = self._fork(job, RUNNER, folder, lambda walls: _tell(walls, theirs), {theirs.fileno()})
        theirs.close()
        ours.settimeout(30)
        try:
            return dict(Line(ours).receive())
        except (EOFError, OSError):
            raise OSError(0, "a trial program did not come to its end") from None
        finally:
            ours.close()
            _ended(pid, 0.0)
            self._clear([folder])


def _tell(walls: dict[str, str], socket: socket.socket) -> int:
    importlib.import_module("colorsys")
    Path("trial").write_text("x")
    Line(socket).send(walls)
    return 0


def _run(source: int, whole: bool, socket: socket.socket, output: int) -> int:
    _redirect(output)
    program.serve(_read(source), whole, Line(socket))
    return 0


def _examine(tests: int, whole: bool, socket: socket.socket, ends: tuple[int, int]) -> int:
    _redirect(ends[0])
    found = tester.examine(_read(tests), whole, Line(socket))
    if found == tester.PASSED:
        os.write(ends[1], b"passed")
    return found


def _redirect(output: int) -> None:
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(nothing)
    os.close(output)


def _read(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as file:
        return file.read().decode("utf-8", "surrogatepass")


def _close_all_but(keep: set[int]) -> None:
    first = 3
    for descriptor in sorted(keep):
        if descriptor >= first:
            os.closerange(first, descriptor)
            first = descriptor + 1
    os.closerange(first, 1 << 16)


def _ended(pid: int, grace: float) -> int:
    until = time.monotonic() + grace
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            for end in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    end(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.0005)


def _end_orphans(proc: int) -> None:
    for _ in range(100 if Path(f"/proc/self/task/{os.getpid()}/children").exists() else 0):
        with os.fdopen(os.open(f"self/task/{os.getpid()}/children", os.O_RDONLY, dir_fd=proc)) as file:
            found = [int(word) for word in file.read().split()]
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if not found:
            return


def _verdict(said: bytes, in_time: bool, tested: int, ran: int) -> dict[str, Any]:
    if in_time and said == b"passed" and tested == tester.PASSED:
        return {"passed": True, "reason": "passed"}
    if not in_time or tested in BY_LIMIT or tested == tester.LEFT and ran in BY_LIMIT:
        return {"passed": False, "reason": "timeout"}
    return {"passed": False, "reason": "no nonce" if tested == tester.LEFT and ran == 0 else "failed"}


def main(descriptor: int, plan: str) -> None:
    """Work behind the walls of a plan, named by words, for the process at the other end of a socket. The first message
    says which walls stand, or why the plan does not hold."""
    asked = socket.socket(fileno=descriptor)
    for name in PRELOADED:
        importlib.import_module(name)
    warden = Warden(asked, frozenset(plan.split()))
    try:
        walls = warden.move_in()
    except OSError as error:
        asked.sendall(json.dumps({"refused": error.strerror or str(error)}).encode())
        return
    asked.sendall(json.dumps({"walls": walls}).encode())
    gc.collect()
    gc.freeze()
    warden.work()
