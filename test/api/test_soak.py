# The soak can fail: each condition broken in turn is named; a server that mixes up its requests is found out.
# Entry points: pytest.
# What keeps /health quick is held here too: no lock is waited for, and no full collection walks what is loaded.
"""The soak and what it demands."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from api import soak
from api.live import config_in, live_server, wait_ready
from api.probe import watching
from api.scripted import ScriptedSession
from waiting import until

from hildanext.api import serving
from hildanext.decoding.request import Request
from hildanext.errors import ConfigError
from hildanext.progress import Console

FLAT = [400.0, 410.0, 410.5, 410.5, 410.6, 410.6, 410.7, 410.7, 410.7]


def report(**changes: Any) -> dict[str, Any]:
    whole = {"wrong": [], "lost": [], "answers": 9, "health_bad": [], "health_ms": {"max": 99.9}, "memory_mb": FLAT}
    return whole | changes


def test_a_soak_that_held_has_nothing_unmet() -> None:
    assert soak.unmet(report()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wrong": ["a girl ran"]}, "wrong: 1, first a girl ran"),
        ({"lost": ["ConnectionError: status 429"]}, "status 429"),
        ({"answers": 0}, "answers: none"),
        ({"health_bad": ["1.0 s: status 503, failed"]}, "1 replies not ready"),
        ({"health_ms": {"max": 100.0}}, "slowest reply 100.0 ms"),
        ({"health_ms": {}}, "slowest reply inf"),
        ({"memory_mb": [400.0 + 5 * second for second in range(9)]}, "grew by 15.0 MB"),
        ({"memory_mb": [400.0] * 5}, "5 samples"),
    ],
)
def test_each_broken_condition_is_named(changes: dict[str, Any], words: str) -> None:
    found = soak.unmet(report(**changes))
    assert len(found) == 1 and words in found[0]


def test_the_distribution_counts_every_reply_once() -> None:
    rows = soak.distribution([0.0, 0.0019, 0.002, 0.0999, 0.1, 3.0])
    assert sum(rows.values()) == 6
    assert (rows["< 1 ms"], rows["< 2 ms"], rows["< 5 ms"], rows["< 100 ms"], rows["< 200 ms"], rows["< inf ms"]) == (
        1, 1, 1, 1, 1, 1,
    )  # fmt: skip


class MixedUp(ScriptedSession):
    """Answers another sample when it has company."""

    def submit(self, request: Request, drafts: bool = False) -> int:
        return super().submit(request.model_copy(update={"sample": request.sample + bool(self.works)}), drafts)


def test_the_command_writes_its_figures_and_fails_for_a_server_that_mixes_up_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "REPORT", tmp_path / "soak.json")
    with live_server(config_in(tmp_path), MixedUp(seconds=0.005)) as (url, _):
        wait_ready(url)
        assert soak.main([url, "6", "0.6", "16"]) == 1
    written = json.loads((tmp_path / "soak.json").read_text())
    assert written["wrong"] and written["lost"] == [] and any("wrong" in line for line in written["unmet"])
    assert "NOT HELD: wrong" in capsys.readouterr().out


class _Slow(BaseHTTPRequestHandler):
    turn = 0

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        type(self).turn += 1
        threading.Event().wait(0.15 if self.turn == 3 else 0.0)
        data = b'{"status": "ready"}' if self.path == "/health" else b"hildanext_memory_bytes 1048576.0\n"
        self.send_response(500 if self.turn == 4 else 200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def slow() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_probe_sees_a_slow_reply_and_a_bad_one(slow: str) -> None:
    with watching(slow) as watch:
        until(lambda: _Slow.turn > 4)
    assert max(taken for _, taken in watch.seen["health"]) >= 0.15
    assert len(watch.seen["bad"]) == 1 and "status 500" in watch.seen["bad"][0] and watch.seen["memory"][0] == 1.0


def test_health_waits_for_no_lock_of_the_jobs(tmp_path: Path) -> None:
    with live_server(config_in(tmp_path), ScriptedSession()) as (url, app):
        wait_ready(url)
        with app.state.server.jobs._lock:
            assert httpx.get(f"{url}/health", timeout=60).json()["jobs"] == {"queued": 0, "running": 0}


@pytest.mark.parametrize(("protocol", "set_at_once"), [(socket.IPPROTO_TCP, True), (0, False)])
def test_replies_are_not_held_back_for_an_acknowledgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, set_at_once: bool
) -> None:
    address = (socket.AF_INET, socket.SOCK_STREAM, protocol, "", ("127.0.0.1", 0))
    monkeypatch.setattr(serving.socket, "getaddrinfo", lambda *_, **__: [address])
    bound = serving._bind(config_in(tmp_path))
    assert asyncio.run(_accepted_without_delay(bound)) is set_at_once


def test_the_address_of_the_server_names_its_protocol(tmp_path: Path) -> None:
    with contextlib.closing(serving._bind(config_in(tmp_path, port=0))) as bound:
        assert bound.proto == socket.IPPROTO_TCP


async def _accepted_without_delay(bound: socket.socket) -> bool:
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    async with await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=bound):
        _, client = await asyncio.open_connection(*bound.getsockname())
        server_side = await accepted
        option = server_side.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for writer in (client, server_side):
            writer.close()
    return bool(option)


def test_what_is_loaded_is_taken_out_of_garbage_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ScriptedSession()
    monkeypatch.setattr(serving, "choose", lambda config, console: (session, ("why",)))
    try:
        assert serving.settled(config_in(tmp_path), Console(quiet=True)) == (session, ("why",))
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


def test_the_server_opens_its_engine_that_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "create_app", _end)
    monkeypatch.setattr(serving.sys, "setswitchinterval", lambda seconds: None)
    with pytest.raises(ConfigError, match="settled"):
        serving.serve(config_in(tmp_path), Console(quiet=True))


def _end(config: Any, console: Any, key: str | None, room: Any, choice: Any) -> Any:
    raise ConfigError(choice.__name__)
