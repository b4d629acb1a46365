# Run directories: states, heartbeat, lost runs, the environment record, signals.
# Entry points: pytest.
# A killed child process stands for kill -9.
"""Tests of hildanext.run_dir."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hildanext.cli import main
from hildanext.config import load_config
from hildanext.disk import write_atomic
from hildanext.errors import HildaError, Interrupted, RunError
from hildanext.progress import Console
from hildanext.run_dir import RunDir, StopRequest, list_runs, read_status, step_folders

CHILD = """
import sys, time
from pathlib import Path
from hildanext.config import load_config
from hildanext.run_dir import RunDir
with RunDir.create(load_config(), "sleep", Path(sys.argv[1])).running():
    print("up", flush=True)
    time.sleep(3600)
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


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
def test_a_second_process_is_refused_and_one_after_the_first_was_killed_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    config = (path / "config.json").read_bytes()
    for resume in (False, True):
        with pytest.raises(HildaError, match=f"another process \\({child.pid}\\) is at work there; .*--run-dir"):
            RunDir.create(load_config(None, ["seed=1"]), "x", path, resume)
    assert read_status(path)["state"] == "running" and (path / "config.json").read_bytes() == config
    child.kill()
    child.wait()
    again = RunDir.create(load_config(None, ["seed=1"]), "x", path)
    assert (path / "config.json").read_bytes() != config
    with pytest.raises(ValueError, match="stop"), again.running():
        raise ValueError("stop")
    RunDir.create(load_config(), "x", path).release()
    RunDir.create(load_config(), "x", path).release()


def test_a_run_that_goes_on_writes_nothing_before_it_begins(tmp_path: Path) -> None:
    first = RunDir.create(load_config(), "x", tmp_path / "run")
    with first.running():
        first.status(step=3)
    before, console = everything(tmp_path), Console(quiet=True)
    later = load_config(None, ["seed=1"])
    for error in (HildaError("refused"), KeyboardInterrupt(), OSError("x")):
        run = RunDir.create(later, "x", tmp_path / "run", resume=True)
        with pytest.raises(type(error)), run.running(console):
            console.say("said before it began")
            raise error
        assert everything(tmp_path) == before
    run = RunDir.create(later, "x", tmp_path / "run", resume=True)
    with run.running(console):
        console.say("said before it began")
        run.begin()
        assert read_status(run.path)["state"] == "running"
    assert load_config(run.path / "config.json") == later
    assert (run.path / "log.txt").read_text().count("said before it began") == 4


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WRITES = [
    (errno.ENOSPC, "No space left on device", "free the disk", RunError),
    (errno.EROFS, "Read-only file system", "name another with --run-dir", HildaError),
    (errno.EACCES, "Permission denied", "name another with --run-dir", HildaError),
]


@pytest.mark.parametrize("where", ["pathlib.Path.mkdir", "hildanext.run_dir.hold", "hildanext.run_dir.write_atomic"])
@pytest.mark.parametrize(("number", "words", "advice", "kind"), WRITES)
def test_a_directory_that_cannot_be_written_is_one_line_and_none_is_left(
    where: str, number: int, words: str, advice: str, kind: type[HildaError], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*values: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(
            HildaError, match=f"run: the run directory cannot be written \\({words}\\); {advice}"
        ) as error:
            RunDir.create(load_config(), "x", tmp_path / "run")
    assert type(error.value) is kind and "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_files_in_the_way_of_a_run_directory_are_one_line_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    job = ["inspect", "tiny", "--no-parity"]
    for place in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "file" / "deeper" / "run"):
        assert main([*job, "--run-dir", str(place)]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert str(place) in said and "name another with --run-dir" in said
    assert main(["smoke-test", "--set", f"paths.runs={tmp_path / 'file'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Not a directory" in said and "paths.runs" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_the_system_refuses_a_command_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(context: object) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr("hildanext.commands.runs.run", fail)
    assert main(["runs"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"some/file: {os.strerror(number)}; " in said
    assert ("free the disk" in said) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_steps_are_numbers_and_copies_are_no_steps(tmp_path: Path) -> None:
    for name in ("step-1000000", "step-999999", "step-000002", "step-000002.mine", "step-x", "step-"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000003").touch()
    assert [path.name for path in step_folders(tmp_path)] == ["step-000002", "step-999999", "step-1000000"]


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
