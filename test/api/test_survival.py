# What must not end a server: exceptions of any class, threads that die, odd files of runs, a full disk.
# Entry points: pytest.
# Planted as they were found: in the engine, in the queue's launcher, in status.json and exit.json, in the writes.
"""A server survives what its parts do wrong."""

from __future__ import annotations

import errno
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from api.live import config_in, live_server, wait_ready
from api.scripted import ScriptedSession
from api.test_jobs import at_work, project, start, stub, wait
from waiting import PATIENCE, until

from hildanext.api import jobs
from hildanext.api.jobs import Jobs
from hildanext.api.worker import Worker
from hildanext.cli import main
from hildanext.decoding.events import Event
from hildanext.decoding.request import Request
from hildanext.disk import write_atomic

__all__ = ["stub"]
KINDS = [Exception, AssertionError, ImportError, StopIteration, EOFError, SystemExit, KeyboardInterrupt, RecursionError]
BODY = {"prompt": "after", "max_new_tokens": 3}


class Planted(ScriptedSession):
    """Raises one class of exception in submit, step, cancel or reset, as its prompts say."""

    kind: type[BaseException] = Exception

    def submit(self, request: Request, drafts: bool = False) -> int:
        if request.prompt == "submit":
            raise self.kind("planted in submit")
        return super().submit(request, drafts)

    def step(self) -> list[Event | Any]:
        if any(work.request.prompt == "step" for work in self.works.values()):
            raise self.kind("planted in step")
        return super().step()

    def reset(self) -> None:
        super().reset()
        raise self.kind("planted in reset")


@pytest.mark.parametrize("kind", KINDS)
def test_no_class_of_exception_ends_the_engine_thread(tmp_path: Path, kind: type[BaseException]) -> None:
    session = Planted()
    session.kind = kind
    with live_server(config_in(tmp_path), session) as (url, _):
        wait_ready(url)
        for prompt in ("submit", "step", "submit", "step"):
            reply = httpx.post(f"{url}/generate", json={"prompt": prompt})
            assert reply.status_code == 500 and kind.__name__ in reply.json()["error"]["message"]
            assert httpx.post(f"{url}/generate", json=BODY).status_code == 200
        assert httpx.get(f"{url}/health").json()["queue"]["requests"] == 0


def test_when_the_engine_thread_ends_health_is_503_and_every_ticket_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live_server(config_in(tmp_path), ScriptedSession(seconds=0.05)) as (url, app), ThreadPoolExecutor(3) as pool:
        wait_ready(url)
        long = {"prompt": "a", "max_new_tokens": 2000}
        waiting = [pool.submit(httpx.post, f"{url}/generate", json=long) for _ in range(3)]
        until(lambda: app.state.server.worker.queued == 3)

        def dies(self: Worker, error: BaseException) -> None:
            raise MemoryError("planted")

        monkeypatch.setattr(Worker, "_broken", dies)
        monkeypatch.setattr(Worker, "_recover", dies, raising=True)
        assert [each.result(timeout=PATIENCE).status_code for each in waiting] == [500, 500, 500]
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert "thread ended" in health.json()["problem"]
        assert httpx.post(f"{url}/generate", json=BODY).status_code == 503


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_jobs_thread_ends_health_is_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(self: Jobs, *values: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(Jobs, "_guarded", dies)
    with live_server(config_in(tmp_path), ScriptedSession()) as (url, app):
        until(lambda: bool(app.state.server.jobs.ended))
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503 and "jobs thread" in health.json()["problem"]


ODD: dict[str, Any] = {
    "no JSON": "{", "a list": "[1]", "a text": '"x"', "empty": "", "bytes": b"\xff\xfe", "deep": "[" * 100_000,
    "a state of no kind": '{"state": "paused"}', "a list as state": '{"state": ["x"]}',
    "odd numbers": '{"state": "running", "pid": "x", "heartbeat": "y", "step": 1e999, "total": [], "loss": {}}',
    "huge numbers": '{"state": "running", "pid": ' + "9" * 400 + ', "heartbeat": 1e308, "started": 5}',
    "a negative process": json.dumps({"state": "running", "pid": -1, "heartbeat": time.time(), "step": 1, "total": 2}),
}  # fmt: skip


def plant(runs: Path, name: str, **files: Any) -> None:
    (runs / name).mkdir(parents=True)
    for file, text in files.items():
        (runs / name / f"{file}.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def test_a_run_that_cannot_be_read_is_lost_and_keeps_nothing_from_starting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, record = tmp_path / "runs", '{"command": "sft", "order": 1}'
    for number, text in enumerate(ODD.values()):
        plant(runs, f"status-{number}", status=text)
        plant(runs, f"job-{number}", status=text, job=record, process=text)
        plant(runs, f"exit-{number}", status='{"state": "queued"}', job=record, process="{}", exit=text)
        plant(runs, f"record-{number}", status='{"state": "done"}', job=text)
    plant(runs, "a-key", status='{"state": "done"}', job='{"command": "sft", "key": 5, "order": "x"}')
    with project(tmp_path) as client:
        listed = {job["id"]: job["state"] for job in client.get("/jobs?limit=1000").json()["jobs"]}
        assert len(listed) == 4 * len(ODD) + 1
        assert {listed[f"status-{number}"] for number in range(len(ODD))} == {"lost"}
        assert {listed[f"exit-{number}"] for number in range(len(ODD))} == {"lost"}
        assert "not valid JSON" in client.get("/jobs/status-0").json()["error"]
        assert all(client.get(f"/jobs/{name}").status_code == 200 for name in listed)
        wait(client, start(client, "ok"), "done")
        assert client.delete("/jobs/exit-0").status_code == 204
    assert main(["runs", "--set", f"paths.runs={runs}", "--last", "99"]) == 0
    shown = capsys.readouterr().err
    assert "status-0" in shown and "lost" in shown and "Traceback" not in shown


def full(*values: Any, **named: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_launch_that_fails_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptors(self: Jobs, files: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with project(tmp_path) as client:
        with monkeypatch.context() as planted:
            planted.setattr(Jobs, "_launch", no_descriptors)
            job = start(client, "ok")
            until(lambda: "Too many open files" in client.get("/health").json()["problem"])
            assert client.get(f"/jobs/{job['id']}").json()["state"] == "queued"
        wait(client, job, "done")
        until(lambda: client.get("/health").json()["problem"] == "")


@pytest.mark.parametrize("where", ["run_dir.write_atomic", "api.jobs.write_atomic"])
def test_a_full_disk_leaves_no_ghost_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with project(tmp_path) as client:
        with monkeypatch.context() as planted:
            planted.setattr(f"hildanext.{where}", full)
            reply = client.post("/jobs", json={"command": "sft"})
        message = reply.json()["error"]["message"]
        assert reply.status_code == 507 and "No space left" in message and "nothing was started" in message
        assert client.get("/jobs").json()["jobs"] == [] and list((tmp_path / "runs").iterdir()) == []
        wait(client, start(client, "ok"), "done")


def test_a_job_can_be_cancelled_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with project(tmp_path) as client:
        first, second = start(client, "sleep"), start(client, "ok")
        at_work(client, first)
        with monkeypatch.context() as planted:
            for where in ("run_dir.write_atomic", "api.jobs.write_atomic"):
                planted.setattr(f"hildanext.{where}", full)
            assert client.post(f"/jobs/{second['id']}/cancel").json()["state"] == "cancelled"
            assert client.post(f"/jobs/{first['id']}/cancel").status_code == 202
            wait(client, first, "cancelled")
            until(lambda: "No space left" in client.get("/health").json()["problem"])
        status = tmp_path / "runs" / second["id"] / "status.json"
        until(lambda: json.loads(status.read_text())["state"] == "cancelled")


def test_a_launcher_that_cannot_start_on_a_full_disk_is_not_started_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_for_its_end(path: Path, text: str) -> None:
        write_atomic(path, text) if path.name == "job.json" else full()

    monkeypatch.setattr(jobs, "LAUNCHER", ("false",))
    with project(tmp_path) as client:
        with monkeypatch.context() as planted:
            planted.setattr("hildanext.api.jobs.write_atomic", full_for_its_end)
            job = start(client, "ok")
            until(lambda: "No space left" in client.get("/health").json()["problem"])
        assert wait(client, job, "failed")["exit_code"] == 1
