# SIGTERM with serve.drain_seconds: /health says draining, new requests are still served, what runs is finished.
# Entry points: pytest.
# The server is the one of `hildanext serve`, its signal handler called as a signal would; a scripted session holds an
# answer open until the test lets it go.
"""Draining."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from api.live import config_in, wait_ready
from api.scripted import Held, story
from waiting import PATIENCE, until

from hildanext.api import serving
from hildanext.api.app import create_app
from hildanext.api.serving import Draining
from hildanext.api.worker import opened
from hildanext.decoding.request import Request
from hildanext.progress import Console


class Served:
    """A Draining server in a thread."""

    def __init__(self, folder: Path, session: Any, seconds: float) -> None:
        config = config_in(folder)
        app = create_app(config, Console(quiet=True), opened=opened(session))
        settings = uvicorn.Config(
            app, port=0, log_level="warning", access_log=False, timeout_graceful_shutdown=int(PATIENCE)
        )
        self.server = Draining(settings, app, seconds, Console(quiet=True))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        wait_ready(self.url)


def streamed(url: str) -> str:
    text = ""
    with httpx.stream("POST", f"{url}/v1/completions", json=BODY_V1) as reply:
        assert reply.status_code == 200
        for line in reply.iter_lines():
            text += line + "\n"
    return text


BODY_V1 = {"model": "scripted", "prompt": "the fox", "max_tokens": 16, "stream": True}


def test_a_draining_server_says_so_serves_on_and_finishes_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, over, slept = threading.Event(), threading.Event(), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        over.wait(PATIENCE)

    monkeypatch.setattr(serving, "time", SimpleNamespace(sleep=sleep))
    served = Served(tmp_path, Held(go), 1.5)
    url, state = served.url, served.server.app.state.server
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(streamed, url)
        until(lambda: state.fleet.queued == 1)
        served.server.handle_exit(signal.SIGTERM, None)
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        assert health.headers["connection"] == "close" and httpx.get(f"{url}/live").status_code == 200
        assert "hildanext_draining 1.0" in httpx.get(f"{url}/metrics").text
        late = pool.submit(streamed, url)
        until(lambda: state.fleet.queued == 2)
        assert slept == [1.5] and not served.server.should_exit
        over.set()
        until(lambda: served.server.should_exit)
        with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
            until(lambda: httpx.get(f"{url}/live").status_code != 200)
        go.set()
        words = story(Request.of(prompt="the fox", max_new_tokens=16, seed=0))
        for reply in (early, late):
            whole = reply.result(timeout=PATIENCE)
            assert all(word.strip() in whole for word in words) and whole.rstrip().endswith("data: [DONE]")
    served.thread.join(PATIENCE)
    assert not served.thread.is_alive()


@pytest.mark.parametrize(("sig", "seconds"), [(signal.SIGINT, 3600.0), (signal.SIGTERM, 0.0)])
def test_ctrl_c_and_a_server_without_drain_seconds_stop_at_once(tmp_path: Path, sig: int, seconds: float) -> None:
    served = Served(tmp_path, Held(threading.Event()), seconds)
    served.server.handle_exit(sig, None)
    served.thread.join(PATIENCE)
    assert not served.thread.is_alive() and not served.server.app.state.server.draining


def test_a_second_sigterm_ends_the_draining(tmp_path: Path) -> None:
    served = Served(tmp_path, Held(threading.Event()), 3600.0)
    for _ in range(2):
        served.server.handle_exit(signal.SIGTERM, None)
    served.thread.join(PATIENCE)
    assert not served.thread.is_alive()
