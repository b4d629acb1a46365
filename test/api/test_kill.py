# kill -9 of a real server process during a job and a generation; then the next server over the same folders.
# Entry points: pytest.
# The server is the command line itself, over a toy model folder; the job is a prepare-data, still starting when the
# server is killed.
"""Death of the server."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api.live import wait_ready
from engines.toy import toy_folder
from waiting import PATIENCE, until

from hildanext.cli import main

SOURCES = 'data.sources=[{"type": "storyworld", "stories": 600}]'
JOB = {"command": "prepare-data", "set": ["data.name=small", SOURCES]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Any]) -> Path:
    root = tmp_path_factory.mktemp("killed")
    toy_folder(root / "models" / "toy", random_model)
    return root


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    command = [
        sys.executable, "-m", "hildanext", "serve", "--port", "0", "--model", "models/toy",
        "--set", 'serve.engines=[{"type": "transformers"}]', "--set", "decode.block=8",
    ]  # fmt: skip
    told = folder / "told.txt"  # a pipe that nobody reads on would stop the server once it is full
    with told.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, stderr=file)
    try:
        url = until(lambda: re.search(r"http://[\d.]+:\d+", told.read_text())).group()
        wait_ready(url)
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_after_kill_nine_the_job_goes_on_and_nothing_is_corrupted(folder: Path) -> None:
    body = {"prompt": "abc", "max_new_tokens": 200, "ignore_eos": True}
    with server(folder) as (process, url):
        alone = httpx.post(f"{url}/generate", json=body, timeout=PATIENCE).json()["text"]
        job = httpx.post(f"{url}/jobs", json=JOB, timeout=PATIENCE).json()
        run = folder / "runs" / job["id"]
        until(lambda: (run / "process.json").exists())
        with httpx.stream("POST", f"{url}/generate", json=body | {"stream": True}, timeout=PATIENCE) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGKILL)
            with pytest.raises(httpx.HTTPError):
                list(lines)
        process.wait()
        launcher = json.loads((run / "process.json").read_text())["pid"]
        living = Path(f"/proc/{launcher}").exists()
        assert living or (run / "exit.json").exists()
    with server(folder) as (_, url):
        assert httpx.post(f"{url}/generate", json=body, timeout=PATIENCE).json()["text"] == alone
        states = {"done", "failed", "lost", "cancelled"}
        seen = set[str]()
        until(lambda: seen.add(httpx.get(f"{url}/jobs/{job['id']}").json()["state"]) or seen & states)
        found = httpx.get(f"{url}/jobs/{job['id']}").json()
        assert seen <= {"running", "done"}
        assert (found["state"], found["exit_code"]) == ("done", 0), found
        for path in run.glob("*.json"):
            json.loads(path.read_text())


def test_a_taken_port_and_a_missing_model_end_with_code_two(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", "--port", str(other.getsockname()[1])]) == 2
    assert "take another port" in capsys.readouterr().err
    assert main(["serve", "--port", "0", "--model", "models/none"]) == 2
    assert "models/none" in capsys.readouterr().err
