# Connections of the server: a bounded number, none idle for long, and one line a minute when there are too many.
# Entry points: Room (how many there may be), patient_protocol, quiet_accept.
# Without a bound, idle connections take every descriptor; asyncio then logs a traceback for every try to accept, up to
# `backlog` of them a second, and jobs and models cannot open a file.
"""Connection limits."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SILENCE_SECONDS = 60.0
UNLIMITED = 1 << 16


@dataclass
class Room:
    """most: connections at once; backlog: connections the system may hold before they are accepted; say: takes a line
    when there are too many, once a minute."""

    most: int
    backlog: int
    say: Callable[[str], None]
    _said: float = field(default=-SILENCE_SECONDS)

    @classmethod
    def of_this_process(cls, say: Callable[[str], None]) -> Room:
        """What the limit of descriptors, raised as far as it may be, leaves after files, jobs and a burst."""
        limit = _raised_limit()
        backlog = max(16, min(128, limit // 4))
        return cls(max(4, limit - _open_now() - backlog - 16), backlog, say)

    def full(self) -> None:
        """Note that a connection was turned away or could not be accepted."""
        if time.monotonic() - self._said >= SILENCE_SECONDS:
            self._said = time.monotonic()
            self.say(f"connections: {self.most} are open, the most this process may hold; more are turned away")


def _raised_limit() -> int:
    if resource is None:
        return UNLIMITED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > UNLIMITED:
        hard = UNLIMITED
    if soft != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return hard


def _open_now() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if sys.platform == "linux" and folder.is_dir() else 64


def patient_protocol(room: Room, seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol that hangs up on a connection beyond the room, and on one that had no request in progress,
    complete up to its body, for `seconds` and more."""

    class Patient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.before: Any = None
            self.watch = self.loop.call_later(seconds, self._look)
            if len(self.connections) > room.most:
                room.full()
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self.watch.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self.before is self.cycle:
                self.transport.close()
                return
            self.before = self.cycle if idle else self
            self.watch = self.loop.call_later(seconds, self._look)

    return Patient


def quiet_accept(room: Room) -> None:
    """In the running loop: no traceback where a connection cannot be accepted for want of descriptors."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "accept() out of system resource" in str(context.get("message")):
            room.full()
        else:
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(handle)
