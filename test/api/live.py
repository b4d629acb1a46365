# A server on a free loopback port for the tests, in a thread; and the scripted or real engine behind it.
# Entry points: LiveServer, config_in.
# Real sockets, because clients that vanish, dawdle or lie cannot be played in process.
"""A live server for tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from waiting import PATIENCE, until

from hildanext.api.app import create_app
from hildanext.api.worker import Opened, opened
from hildanext.config import Config
from hildanext.progress import Console


def config_in(folder: Path, **serve: Any) -> Config:
    """A configuration whose folders are below `folder`."""
    paths = {name: str(folder / name) for name in ("data", "models", "runs")}
    for path in paths.values():
        Path(path).mkdir(parents=True, exist_ok=True)
    return Config.model_validate({"paths": paths, "serve": serve})


@contextlib.contextmanager
def live_server(
    config: Config, session: Any = None, key: str | None = None, opener: Callable[[], Opened] | None = None,
    app: Any = None,
) -> Iterator[tuple[str, Any]]:  # fmt: skip
    """(base URL, application) of a server that runs until the block ends."""
    given = opener or (opened(session) if session is not None else None)
    app = app or create_app(config, Console(quiet=True), key, given)
    settings = uvicorn.Config(
        app, port=0, log_level="warning", access_log=False, timeout_graceful_shutdown=2, ws="none"
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{_port(server)}", app
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def _port(server: uvicorn.Server) -> int:
    until(lambda: server.started)
    return int(server.servers[0].sockets[0].getsockname()[1])


def wait_ready(url: str) -> dict[str, Any]:
    """Health, once it says ready."""
    found: dict[str, Any] = until(lambda: _ready(url))
    return found


def _ready(url: str) -> dict[str, Any] | None:
    with contextlib.suppress(httpx.HTTPError):
        health = httpx.get(f"{url}/health").json()
        return dict(health) if health["status"] == "ready" else None
    return None
