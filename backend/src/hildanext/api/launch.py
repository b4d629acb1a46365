# The process between server and command: starts one command, passes signals on, writes how it ended.
# Entry points: python -m hildanext.api.launch RUN_DIR. Started by api/jobs.py, outlives the server.
# process.json is created exclusively, so a job cannot start twice; exit.json is the last word on how it ended.
"""Launcher of one job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hildanext.run_dir import write_atomic

PROGRAM = (sys.executable, "-m", "hildanext")


def start_ticks(pid: int) -> str:
    """Start time of a process in clock ticks since boot, "" where the system does not tell; with the id it names one
    process for good."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def claim(run: Path) -> bool:
    """Create process.json with this process in it; False where another launcher has."""
    record = json.dumps({"pid": os.getpid(), "started": start_ticks(os.getpid()), "time": time.time()})
    temporary = run / f".process.{os.getpid()}"
    temporary.write_text(record, encoding="utf-8")
    try:
        os.link(temporary, run / "process.json")
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def main(argv: Sequence[str], program: Sequence[str] = PROGRAM) -> int:
    """Run `program` with the command of RUN_DIR/job.json in RUN_DIR; returns its exit code."""
    run = Path(argv[0])
    if not claim(run):
        return 0
    job = json.loads((run / "job.json").read_text(encoding="utf-8"))
    command = [*program, job["command"], "--config", str(run / "config.json"), "--run-dir", str(run)]
    with (run / "output.txt").open("ab") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    _Forward(child).install()
    code = child.wait()
    write_atomic(run / "exit.json", json.dumps({"code": code, "time": time.time(), "pid": child.pid}))
    return code


class _Forward:
    def __init__(self, child: subprocess.Popen[Any]) -> None:
        self.child = child

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.child.poll() is None:
            self.child.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
