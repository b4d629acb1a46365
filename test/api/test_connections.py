# Connections that do nothing, more of them than there are descriptors, and a key that nobody can read.
# Entry points: pytest.
# A server of its own process with few descriptors; what it logs is read from its output.
"""Idle connections, descriptors, the API key."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from api.live import wait_ready
from waiting import PATIENCE, until

KEY = "a-key-of-many-letters"
SERVER = """
import resource, sys
sys.path.insert(0, sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
from pathlib import Path
from api.live import config_in
from api.scripted import ScriptedSession
from hildanext.api import serving
from hildanext.api.worker import opened
from hildanext.progress import Console
serving.IDLE_SECONDS = float(sys.argv[3])
serving.settled = lambda config, console: opened(ScriptedSession())()
serving.serve(config_in(Path(sys.argv[1]), port=0), Console())
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and limits of descriptors")


@contextlib.contextmanager
def server(folder: Path, idle: float) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """(process, port, its log) of a server with 80 descriptors that waits `idle` seconds for a request."""
    log = folder / "log"
    with log.open("wb") as file:
        words = [sys.executable, "-c", SERVER, str(folder / "project"), str(Path(__file__).parent.parent), str(idle)]
        process = subprocess.Popen(words, stderr=file, stdout=file, env=os.environ | {"HILDANEXT_API_KEY": KEY})
    try:
        until(lambda: b"serving on" in log.read_bytes() or process.poll() is not None)
        port = int(log.read_text().partition("127.0.0.1:")[2].split()[0])
        wait_ready(f"http://127.0.0.1:{port}")
        yield process, port, log
    finally:
        process.kill()
        process.wait()


@linux
def test_idle_connections_beyond_the_descriptors_cost_a_line_and_the_server_goes_on(tmp_path: Path) -> None:
    with server(tmp_path, 3.0) as (process, port, log):
        environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"HILDANEXT_API_KEY=" in environ and KEY.encode() not in environ
        idle = [socket.socket() for _ in range(120)]
        for wire in idle:
            wire.setblocking(False)
            wire.connect_ex(("127.0.0.1", port))
        until(lambda: "connections: " in log.read_text())
        wait_ready(f"http://127.0.0.1:{port}")
        for wire in idle:
            wire.close()
        lines = [line for line in log.read_text().splitlines() if not line.startswith('{"time"')]
        assert len(lines) <= 4 and sum("connections: " in line for line in lines) == 1, lines
        assert "Traceback" not in log.read_text()


@linux
def test_a_connection_without_a_whole_request_is_hung_up_on_and_one_at_work_is_not(tmp_path: Path) -> None:
    with server(tmp_path, 1.0) as (_, port, _log):
        silent, dripping = (socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(2))
        begun, closed = time.monotonic(), set[socket.socket]()
        while len(closed) < 2 and time.monotonic() - begun < PATIENCE:
            with contextlib.suppress(OSError):
                dripping.send(b"G" if time.monotonic() - begun < 0.2 else b"E")
            for wire in (silent, dripping):
                wire.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    try:
                        data = wire.recv(100)
                    except ConnectionError:
                        data = b""
                    if not data or b"400" in data:
                        closed.add(wire)
        assert closed == {silent, dripping}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as client:
            client.connect()
            wire, begun = client.sock, time.monotonic()
            while time.monotonic() - begun < 2.2:  # no gap comes near the second after which a silent one is closed
                client.request("GET", "/v1/models", headers={"authorization": f"Bearer {KEY}"})
                assert client.getresponse().read().startswith(b"{") and client.sock is wire
                time.sleep(0.05)
