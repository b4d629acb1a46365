# Run directories: states, heartbeat, lost runs, the environment record, signals.
# Entry points: pytest.
# A killed child process stands for kill -9.
"""Tests of hildanext.run_dir."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hildanext.config import load_config
from hildanext.disk import write_atomic
from hildanext.errors import HildaError, Interrupted
from hildanext.run_dir import RunDir, StopRequest, list_runs, read_status

CHILD = """
import sys, time
from pathlib import Path
from hildanext.config import load_config
from hildanext.run_dir import RunDir
with RunDir.create(load_config(), "sleep", Path(sys.argv[1])).running():
    print("up", flush=True)
    time.sleep(60)
"""


def test_a_run_goes_from_queued_to_done_and_keeps_its_values(tmp_path: Path) -> None:
    config = load_config(None, [f"paths.runs={tmp_path}"])
    run = RunDir.create(config, "convert-wsd")
    assert read_status(run.path)["state"] == "queued"
    with run.running():
        assert read_status(run.path)["state"] == "running"
        run.status(step=3, loss=1.5)
    status = read_status(run.path)
    assert (status["state"], status["step"], status["loss"]) == ("done", 3, 1.5)
    assert load_config(run.path / "config.json") == config
    assert [row["id"] for row in list_runs(tmp_path)] == [run.path.name]


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError("x"), "failed"), (KeyboardInterrupt(), "cancelled"), (Interrupted("i"), "cancelled")],
)
def test_the_way_a_run_ends_is_its_state(error: BaseException, state: str, tmp_path: Path) -> None:
    run = RunDir.create(load_config(), "x", tmp_path / "run")
    with pytest.raises(type(error)), run.running():
        raise error
    assert read_status(run.path)["state"] == state


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_run_reads_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "run")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    assert read_status(tmp_path / "run")["state"] == "running"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert read_status(tmp_path / "run")["state"] == "lost"


def test_a_silent_run_reads_lost_though_its_number_lives(tmp_path: Path) -> None:
    run = RunDir.create(load_config(), "x", tmp_path / "run")
    run.status(state="running")
    status = json.loads((run.path / "status.json").read_text())
    write_atomic(run.path / "status.json", json.dumps(status | {"heartbeat": time.time() - 3600}))
    assert read_status(run.path)["state"] == "lost"


def test_a_folder_that_is_no_run_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(HildaError, match="not a run directory"):
        read_status(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_run_is_not_written_into_a_model_or_a_data_set(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("theirs")
    with pytest.raises(HildaError, match=f"holds {name} and is no run directory; name another with --run-dir"):
        RunDir.create(load_config(), "x", tmp_path)
    with pytest.raises(HildaError, match="a file, not a run directory"):
        RunDir.create(load_config(), "x", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "theirs"


def test_the_environment_record_is_enough_to_repeat_the_run(tmp_path: Path) -> None:
    run = RunDir.create(load_config(), "x", tmp_path / "run")
    run.environment(device="cpu", dtype="float32", dtype_reason="cpu", model_hash="a", data_hash="b")
    recorded = json.loads((run.path / "env.json").read_text())
    assert recorded["versions"]["torch"] and recorded["device"] == "cpu" and recorded["dtype_reason"] == "cpu"
    assert set(recorded) >= {"git", "python", "platform", "command", "threads", "cores", "model_hash", "data_hash"}


def test_a_resumed_run_keeps_what_it_began_on(tmp_path: Path) -> None:
    run = RunDir.create(load_config(), "x", tmp_path / "run")
    for number in range(3):
        run.environment(again=number > 0, device=f"machine {number}")
    recorded = json.loads((run.path / "env.json").read_text())
    assert recorded["device"] == "machine 0"
    assert [later["device"] for later in recorded["resumed"]] == ["machine 1", "machine 2"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_first_signal_is_a_request_and_a_second_interrupts() -> None:
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
