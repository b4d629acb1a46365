# The plan of a job before it is started: the command's own --print-plan, in a process of its own, one at a time.
# Entry points: planned. Nothing is written and nothing trained; the process has the server's time limit.
# What the command refuses is the client's mistake, in the command's words.
"""Plan of a job."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from hildanext.api.job_files import finite
from hildanext.api.jobs import Jobs
from hildanext.api.replies import ApiError
from hildanext.api.schemas import JobBody
from hildanext.command_files import job_kinds
from hildanext.config import resolved_json

PROGRAM = (sys.executable, "-m", "hildanext")
PLANNING = threading.Lock()


def planned(jobs: Jobs, body: JobBody) -> dict[str, Any]:
    """The plan of a job as the command prints it. ApiError 400 where the command has none or refuses, 429 while another
    is made, 504 where it takes longer than a request may."""
    with_plan = [name for name, file in job_kinds().items() if file.plan]
    if body.command not in with_plan:
        raise ApiError(400, f"command: {body.command} has no plan, {', '.join(with_plan)} have", "command")
    config = jobs.resolved(body)
    if not PLANNING.acquire(blocking=False):
        raise ApiError(429, "plan: another one is being made", Retry_After="10")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(resolved_json(config, body.command), encoding="utf-8")
            command = [*PROGRAM, body.command, "--config", str(path), "--print-plan", "--json"]
            seconds = jobs.config.serve.request_seconds
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ApiError(504, "plan: not ready in time (serve.request_seconds)") from None
    finally:
        PLANNING.release()
    return _told(done)


def _told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    try:
        value = json.loads(done.stdout)
    except ValueError:
        value = None
    if done.returncode or not isinstance(value, dict):
        words = (done.stderr.strip().splitlines() or ["the command ended without a plan"])[-1]
        raise ApiError(400 if done.returncode == 2 else 500, f"plan: {words[:500]}")
    found: dict[str, Any] = finite(value) or {}
    return found
