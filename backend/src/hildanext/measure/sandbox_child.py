# The child's side of sandbox.py: limits itself, leaves the network, refuses dangerous calls, runs the program.
# Entry points: executed as a script by sandbox.run_program; {nonce, source, limits} arrive as JSON on stdin.
# Standard library only, started with -I -S: nothing of the parent's environment or packages is visible.
"""Child process of the sandbox."""

import json
import os
import sys
from typing import Any

DENIED = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "os.chmod",
    "os.putenv", "pty.spawn", "ctypes.", "shutil.rmtree", "urllib.", "ftplib.", "smtplib.", "http.", "webbrowser.",
    "os.listdir", "os.scandir",
)  # fmt: skip
MOVES = ("os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.mkdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000


def leave_network() -> bool:
    """Move into an empty network namespace where the kernel lets us; whether it did."""
    import ctypes

    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    flags = NEW_NETWORK if os.getuid() == 0 else NEW_NETWORK | NEW_USER
    return unshare is not None and unshare(flags) == 0


def limit(sent: dict[str, Any]) -> None:
    """Set the resource limits of this process, soft and hard."""
    import resource

    wanted = {
        "RLIMIT_CPU": sent["cpu_seconds"], "RLIMIT_AS": sent["memory_bytes"], "RLIMIT_FSIZE": sent["file_bytes"],
        "RLIMIT_NOFILE": sent["open_files"], "RLIMIT_NPROC": sent["processes"], "RLIMIT_CORE": 0,
    }  # fmt: skip
    for name, value in wanted.items():
        resource.setrlimit(getattr(resource, name), (value, value))


def guard(home: str) -> Any:
    """An audit hook that refuses processes, sockets, foreign libraries and writing outside `home`."""
    return _Guard(home)


class _Guard:
    def __init__(self, home: str) -> None:
        self.home = os.path.realpath(home) + os.sep

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(DENIED):
            raise PermissionError(f"sandbox: {event} is not allowed")
        if event == "open" and isinstance(args[2], int) and args[2] & WRITING:
            self._inside(args[0], event)
        if event in MOVES:
            for path in args[:2]:
                self._inside(path, event)

    def _inside(self, path: Any, event: str) -> None:
        if isinstance(path, str | bytes) and not os.path.realpath(os.fsdecode(path)).startswith(self.home):
            raise PermissionError(f"sandbox: {event} of {os.fsdecode(path)} is not allowed")


def main() -> None:
    """Run the program; its end is reported on the descriptor given as the only argument."""
    report = int(sys.argv.pop())
    sent = json.load(sys.stdin)
    os.write(report, b"isolated\n" if leave_network() else b"guarded\n")
    limit(sent)
    program = compile(sent["source"], "<program>", "exec")
    sys.addaudithook(guard(os.path.curdir))
    exec(program, {"__name__": "__main__"})
    os.write(report, sent["nonce"].encode() + b"\n")


if __name__ == "__main__":
    main()
