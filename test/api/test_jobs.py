# Jobs: queue, order, cancel, crash, restart; each a real child process that runs a stub command.
# Entry points: pytest.
# "Restart" is a new server over the same folders while the children live on.
"""Jobs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api.live import config_in, live_server, wait_ready
from api.scripted import ScriptedSession
from waiting import until

from hildanext.api import jobs
from hildanext.api.job_files import FINAL, JobFiles, read_json
from hildanext.cli import parser
from hildanext.command_files import job_kinds

LAUNCHER = jobs.LAUNCHER
STUB = Path(__file__).parent / "stub_launcher.py"


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LAUNCHER", (sys.executable, str(STUB)))
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.05)


@contextlib.contextmanager
def project(folder: Path, **serve: Any) -> Iterator[httpx.Client]:
    with live_server(config_in(folder, **serve), ScriptedSession()) as (url, _):
        wait_ready(url)
        with httpx.Client(base_url=url) as client:
            yield client


def start(client: httpx.Client, deed: str, **headers: str) -> dict[str, Any]:
    reply = client.post("/jobs", json={"command": "convert-wsd", "set": [f"description={deed}"]}, headers=headers)
    assert reply.status_code in (200, 202), reply.text
    return dict(reply.json())


def wait(client: httpx.Client, job: dict[str, Any], *states: str) -> dict[str, Any]:
    until(lambda: client.get(f"/jobs/{job['id']}").json()["state"] in (*states, *FINAL))
    found = client.get(f"/jobs/{job['id']}").json()
    assert found["state"] in states, found
    return dict(found)


def at_work(client: httpx.Client, job: dict[str, Any], after: int = 0) -> None:
    until(lambda: (client.get(f"/jobs/{job['id']}").json()["step"] or 0) > after)


def stop(client: httpx.Client, job: dict[str, Any]) -> None:
    client.post(f"/jobs/{job['id']}/cancel")
    wait(client, job, "cancelled")


def test_a_job_runs_to_its_report_with_log_and_metrics(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        job = start(client, "ok")
        done = wait(client, job, "done", "failed")
        assert (done["state"], done["step"], done["exit_code"]) == ("done", 3, 0)
        assert done["report"] == {"final": 1.5, "bad": None}
        logs = client.get(f"/jobs/{job['id']}/logs").json()
        assert logs["output"] == ["hello from the job"] and len(logs["log"]) == 3
        assert client.get(f"/jobs/{job['id']}/metrics?tail=2").json()["metrics"][-1]["loss"] == 1 / 3
        assert [found["id"] for found in client.get("/jobs").json()["jobs"]] == [job["id"]]


def test_a_failure_shows_its_exit_code_and_last_words(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        job = wait(client, start(client, "fail"), "failed")
        assert job["exit_code"] == 3 and job["error"] == "the disk is full"


def test_jobs_wait_for_each_other_in_order_and_cancel_saves_first(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        first, second, third = (start(client, deed) for deed in ("sleep", "sleep", "ok"))
        running = wait(client, first, "running")
        at_work(client, first)
        assert client.get(f"/jobs/{second['id']}").json()["state"] == "queued"
        assert client.get("/health").json()["jobs"] == {"queued": 2, "running": 1}
        assert client.delete(f"/jobs/{first['id']}").status_code == 409 and running["job"]
        stop(client, first)
        assert (tmp_path / "runs" / first["id"] / "checkpoints" / "step-000001").is_dir()
        wait(client, second, "running")
        stop(client, second)
        wait(client, third, "done")


def test_a_queued_job_is_cancelled_at_once_and_can_be_deleted(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        first, second = start(client, "sleep"), start(client, "ok")
        assert client.post(f"/jobs/{second['id']}/cancel").json()["state"] == "cancelled"
        assert client.post(f"/jobs/{second['id']}/cancel").status_code == 409
        assert client.delete(f"/jobs/{second['id']}").status_code == 204
        assert client.get(f"/jobs/{second['id']}").status_code == 404
        wait(client, first, "running")
        stop(client, first)


def test_a_job_that_ignores_the_signal_is_killed_after_its_time(tmp_path: Path) -> None:
    with project(tmp_path, cancel_seconds=3600) as client:
        job = start(client, "stubborn")
        at_work(client, job)
        assert client.post(f"/jobs/{job['id']}/cancel").json()["state"] == "cancelling"
    with project(tmp_path, cancel_seconds=0.5) as client:
        wait(client, job, "cancelled")
        status = tmp_path / "runs" / job["id"] / "status.json"
        until(lambda: json.loads(status.read_text())["state"] == "cancelled")


def test_an_idempotency_key_makes_one_job(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        key = {"Idempotency-Key": "abc-1"}
        first = start(client, "ok", **key)
        assert start(client, "ok", **key)["id"] == first["id"]
        other = client.post("/jobs", json={"command": "sft"}, headers=key)
        assert other.status_code == 409
        wait(client, first, "done")
    with project(tmp_path) as client:
        assert start(client, "ok", **key)["id"] == first["id"]


def test_a_job_survives_a_restart_and_the_queue_goes_on(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        first, second = start(client, "sleep"), start(client, "ok")
        at_work(client, first)
        step = client.get(f"/jobs/{first['id']}").json()["step"]
    with project(tmp_path) as client:
        wait(client, first, "running")
        at_work(client, first, after=step)
        stop(client, first)
        wait(client, second, "done")


def test_a_job_whose_processes_are_killed_reads_lost(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        job = start(client, "sleep")
        at_work(client, job)
        launcher = json.loads((tmp_path / "runs" / job["id"] / "process.json").read_text())["pid"]
        os.killpg(launcher, signal.SIGKILL)
        assert wait(client, job, "lost")["state"] == "lost"
        again = start(client, "ok")
        wait(client, again, "done")
        assert client.delete(f"/jobs/{job['id']}").status_code == 204


def test_a_job_that_begins_or_ends_while_it_is_looked_at_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("status", {"state": "queued"}), ("job", {"command": "sft"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))

    def begun_just_now(path: Path) -> dict[str, Any]:
        found = read_json(path)
        if path.name == "process.json":
            path.write_text('{"pid": 1, "started": "0"}')
        return found

    def ended_just_now(process: dict[str, Any]) -> bool:
        (tmp_path / "exit.json").write_text('{"code": 0}')
        return False

    with monkeypatch.context() as patch:
        patch.setattr("hildanext.api.job_files.read_json", begun_just_now)
        assert JobFiles(tmp_path).state() == "queued"
    monkeypatch.setattr("hildanext.api.job_files.alive", ended_just_now)
    assert JobFiles(tmp_path).state() == "done"


def test_logs_and_metrics_can_be_followed(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        job = start(client, "ok")
        with client.stream("GET", f"/jobs/{job['id']}/metrics?stream=true") as reply:
            text = "".join(reply.iter_text())
        assert text.count("event: metric") == 3 and 'event: end\ndata: {"state": "done"}' in text
        with client.stream("GET", f"/jobs/{job['id']}/logs?stream=true") as reply:
            text = "".join(reply.iter_text())
        assert text.count("event: log") == 3 and text.count("event: output") == 1


def test_a_run_of_the_command_line_is_listed_but_not_touched(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "sft-by-hand"
    with project(tmp_path) as client:
        run.mkdir(parents=True)
        (run / "status.json").write_text(json.dumps({"state": "done", "command": "sft", "step": 4, "loss": 0.5}))
        (found,) = client.get("/jobs").json()["jobs"]
        assert (found["id"], found["job"], found["state"]) == ("sft-by-hand", False, "done")
        assert client.post("/jobs/sft-by-hand/cancel").status_code == 409
        assert client.delete("/jobs/sft-by-hand").status_code == 409


def test_a_config_error_is_a_400_with_every_problem(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        body = {"command": "sft", "set": ["train.nonsense=1", "seed=-1"]}
        reply = client.post("/jobs", json=body)
        message = reply.json()["error"]["message"]
        assert reply.status_code == 400 and "nonsense" in message and "seed" in message
        assert list((tmp_path / "runs").iterdir()) == []


def test_jobs_can_be_switched_off(tmp_path: Path) -> None:
    with project(tmp_path, jobs=False) as client:
        assert client.post("/jobs", json={"command": "sft"}).status_code == 403


def test_a_full_job_queue_is_a_429(tmp_path: Path) -> None:
    with project(tmp_path, jobs_queued=1) as client:
        first = start(client, "sleep")
        wait(client, first, "running")
        second = start(client, "ok")
        assert client.post("/jobs", json={"command": "sft"}).status_code == 429
        stop(client, second)
        stop(client, first)


def test_the_kinds_are_listed_with_help_and_the_values_they_read(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        kinds = client.get("/jobs/kinds").json()["kinds"]
    assert [kind["command"] for kind in kinds] == list(job_kinds()) and all(kind["help"] for kind in kinds)
    (merge,) = [kind for kind in kinds if kind["command"] == "merge-checkpoints"]
    assert {key: merge["fields"][1][key] for key in ("place", "default")} == {"place": "merge.best", "default": 3}
    assert all(field["description"] for kind in kinds for field in kind["fields"])


def test_a_kind_that_is_none_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        reply = client.post("/jobs", json={"command": "inspct"})
    assert reply.status_code == 422 and "did you mean 'inspect'" in reply.json()["error"]["message"]


def test_a_job_runs_the_command_with_everything_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LAUNCHER", LAUNCHER)
    sets = ["model.path=tiny", "inspect.against=tiny-parent", "inspect.parity=false"]
    with project(tmp_path) as client:
        job = client.post("/jobs", json={"command": "inspect", "set": sets}).json()
        done = wait(client, job, "done", "failed")
    assert done["state"] == "done", done["error"]
    assert done["report"]["against"]["folder"] and "parity" not in done["report"]


@pytest.mark.parametrize("command", job_kinds())
def test_every_command_of_a_job_takes_what_the_launcher_gives_it(command: str) -> None:
    args = parser().parse_args([command, "--config", "config.json", "--run-dir", "run"])
    assert (args.config, args.run_dir) == (Path("config.json"), Path("run"))


def test_a_job_has_the_defaults_of_its_command(tmp_path: Path) -> None:
    with project(tmp_path) as client:
        for sets, lr in (([], 1e-5), (["model.adapter.kind=lora"], 2e-4), (["optimizer.lr=0.5"], 0.5)):
            body = {"command": "sft", "set": [*sets, "description=ok"]}
            job = client.post("/jobs", json=body).json()
            config = json.loads((tmp_path / "runs" / job["id"] / "config.json").read_text())
            assert (config["objective"]["type"], config["train"]["split"]) == ("multi_turn", "sft_train")
            assert config["optimizer"]["lr"] == lr
            wait(client, job, "done")


def test_a_configuration_of_a_job_may_not_extend_a_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"seed": 7}')
    with project(tmp_path) as client:
        for name, parent in (("direct", "../secret.json"), ("through", "direct.json"), ("inside", "own.json")):
            (tmp_path / "runs" / f"{name}.json").write_text(json.dumps({"extends": parent}))
        own = {"description": "ok", "paths": {name: str(tmp_path / name) for name in ("data", "models", "runs")}}
        (tmp_path / "runs" / "own.json").write_text(json.dumps(own))
        for name, status in (("direct", 403), ("through", 403), ("inside", 202)):
            body = {"command": "sft", "config": str(tmp_path / "runs" / f"{name}.json")}
            reply = client.post("/jobs", json=body)
            assert reply.status_code == status, reply.text
        assert wait(client, reply.json(), "done")
