# A process that asks a server for its health ten times a second, and for its memory once a second, until stdin closes.
# Entry points: watching(url) -> Watch (context manager); python -m api.probe URL prints what it saw as JSON.
# A process of its own and the standard library only: a thread beside busy clients would measure its own wait for the
# interpreter, not the server. Times are wall seconds of one whole reply over a kept connection.
"""Probe of a running server."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

EVERY = 0.1
FAULTS = (OSError, http.client.HTTPException, ValueError)


@dataclass
class Seen:
    """health: [seconds since the start, seconds taken] each; memory: MiB each; bad: replies that were no `ready`."""

    health: list[tuple[float, float]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    """Status and body of one GET."""
    connection.request("GET", path)
    reply = connection.getresponse()
    return reply.status, reply.read()


def one(connection: http.client.HTTPConnection, seen: Seen, started: float) -> None:
    """One health reply, timed; what is wrong with it goes into `bad`."""
    begun = time.perf_counter()
    try:
        status, body = ask(connection, "/health")
        seen.health.append((round(begun - started, 3), time.perf_counter() - begun))
        if status != 200 or json.loads(body)["status"] != "ready":
            seen.bad.append(f"{begun - started:.1f} s: status {status}, {body[:200].decode(errors='replace')}")
    except FAULTS as error:
        seen.bad.append(f"{begun - started:.1f} s: {type(error).__name__}: {error}")
        connection.close()


def probe(url: str) -> Seen:
    """Ask until stdin closes."""
    seen, started, turn = Seen(), time.perf_counter(), 0
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        one(connection, seen, started)
        if turn % round(1 / EVERY) == 0:
            with contextlib.suppress(*FAULTS):
                found = re.search(rb"^hildanext_memory_bytes (\S+)", ask(connection, "/metrics")[1], re.M)
                seen.memory.append(float(found[1]) / 2**20 if found else 0.0)
        turn += 1
    return seen


@dataclass
class Watch:
    """A probe at work; `seen` is filled when the block ends."""

    seen: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def watching(url: str) -> Iterator[Watch]:
    """A probe of `url` for the length of the block."""
    command = [sys.executable, "-m", "api.probe", url]
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    watch = Watch()
    try:
        yield watch
        watch.seen = json.loads(process.communicate(timeout=300)[0])
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    gc.disable()
    print(json.dumps(vars(probe(sys.argv[1]))))
