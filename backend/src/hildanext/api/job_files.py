# One job on disk: a run directory with job.json (what was asked), process.json (who runs it), exit.json (how it ended).
# Entry points: JobFiles (state, exit_code, reply, tail, metrics), alive, read_json, parsed, whole, FINAL.
# The state is derived from these files and from the process table each time, so any server process reads the same one.
"""Files of a job."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hildanext.api.launch import start_ticks
from hildanext.api.schemas import JobReply
from hildanext.errors import HildaError
from hildanext.run_dir import STATES, read_status

TAIL_BYTES = 256 * 1024
INTERRUPTED = 130
MOST = 1e300
FINAL = frozenset({"done", "failed", "cancelled", "lost"})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where the file is missing or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def alive(process: dict[str, Any]) -> bool:
    """Whether the very process of a process.json still runs: same id, same start time, not a zombie."""
    pid = whole(process.get("pid")) or 0
    if pid <= 0 or start_ticks(pid) != process.get("started", ""):
        return False
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError, OverflowError):
        return False


@dataclass(frozen=True)
class JobFiles:
    """The run directory of one job, or of a run started otherwise."""

    path: Path

    @property
    def record(self) -> dict[str, Any]:
        """job.json; {} for a run that was not started as a job."""
        return read_json(self.path / "job.json")

    @property
    def process(self) -> dict[str, Any]:
        """process.json of the launcher; {} before it started."""
        return read_json(self.path / "process.json")

    @property
    def status(self) -> dict[str, Any]:
        """status.json as the run directory reads it; {} where it cannot be read."""
        try:
            return read_status(self.path)
        except HildaError:
            return {}

    def cancelling(self) -> bool:
        """Whether cancel was asked for."""
        return (self.path / "cancel.json").exists()

    def state(self) -> str:
        """queued, running, cancelling, done, failed, cancelled; lost also where its files cannot be read."""
        status = self.status
        if not self.record:
            said = status.get("state")
            return said if said in STATES else "lost"
        claimed = (self.path / "process.json").exists()
        process = self.process
        living = alive(process)  # asked first: what a launcher writes last is there once it is gone
        code, state = self.exit_code(), str(self.status.get("state"))
        if code is not None:
            return self._ended(code, state)
        if not process:
            return "lost" if claimed else self._not_started()
        if living:
            return "cancelling" if self.cancelling() else "running"
        if state in ("done", "failed", "cancelled"):
            return state
        if state == "running":
            return "cancelling" if self.cancelling() else "running"
        return "cancelled" if self.cancelling() else "lost"

    def exit_code(self) -> int | None:
        """The code of exit.json, None while there is none that can be read."""
        return whole(read_json(self.path / "exit.json").get("code"))

    def unsettled(self) -> bool:
        """Whether the job has ended and its own status.json does not say so yet."""
        state = self.state()
        return bool(self.record) and state in FINAL - {"lost"} and self.status.get("state", state) != state

    def _not_started(self) -> str:
        return "cancelled" if self.cancelling() else "queued"

    def _ended(self, code: int, state: str) -> str:
        if state in ("done", "failed", "cancelled"):
            return state
        if code == 0:
            return "done"
        return "cancelled" if self.cancelling() or code == INTERRUPTED else "failed"

    def reply(self, full: bool = False) -> JobReply:
        """What the API says about it; `full` adds the report and the plan."""
        status, state, record = self.status, self.state(), self.record
        report = read_json(self.path / "report.json") if full else {}
        return JobReply(
            id=self.path.name,
            command=str(record.get("command") or status.get("command") or "unknown"),
            state=state,  # type: ignore[arg-type]
            job=bool(record),
            step=whole(status.get("step")),
            total=whole(status.get("total")),
            loss=_finite(status.get("loss")),
            eta_seconds=_eta(status, state),
            started=_text(status.get("started")),
            ended=_text(status.get("ended")),
            exit_code=self.exit_code(),
            error=_text(status.get("error")) or self._unreadable() or self._last_words(state),
            report=finite(report) or None,
            plan=finite(read_json(self.path / "plan.json") if full else {}) or None,
        )

    def _unreadable(self) -> str | None:
        try:
            read_status(self.path)
        except HildaError as error:
            return str(error).removeprefix(f"{self.path}/")
        return None

    def _last_words(self, state: str) -> str | None:
        lines = self.tail("output.txt", 1) if state == "failed" else []
        return lines[0][:500] if lines else None

    def tail(self, name: str, count: int) -> list[str]:
        """The last `count` lines of a file of the run, [] where it is missing."""
        try:
            with (self.path / name).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return text.splitlines()[-count:]

    def metrics(self, count: int) -> list[dict[str, Any]]:
        """The last `count` entries of metrics.jsonl."""
        return [entry for line in self.tail("metrics.jsonl", count) if (entry := parsed(line))]


def parsed(line: str) -> dict[str, Any]:
    """One JSON line as a finite object, {} where it is not one (a line still being written)."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return finite(value) or {} if isinstance(value, dict) else {}


def finite(value: Any) -> Any:
    """The value with every NaN and infinity replaced by None, as JSON has neither; None where it is nested too deep."""
    try:
        return _without_infinities(value)
    except RecursionError:
        return None


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < MOST else None


def whole(value: Any) -> int | None:
    """A number as an integer, None for what is none of a usable size."""
    return int(value) if isinstance(value, int | float) and abs(value) < MOST else None


def _text(value: Any) -> str | None:
    return str(value) if value else None


def _eta(status: dict[str, Any], state: str) -> float | None:
    step, total, first = (_finite(status.get(name)) for name in ("step", "total", "first_step"))
    own = (step or 0.0) - (first or 0.0)
    if state != "running" or own <= 0 or not total:
        return None
    try:
        begun = datetime.fromisoformat(str(status.get("begun", status.get("started")))).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return max(0.0, (time.time() - begun) * (total - (step or 0.0)) / own)
