# A server process: one socket, one event loop, one engine thread.
# Entry points: serve(config, console), Draining (the uvicorn server that a SIGTERM drains first).
# The socket is bound before the engine loads, so that a taken port is known at once and port 0 can be told.
"""The server process."""

from __future__ import annotations

import gc
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from hildanext.api.app import api_key, create_app
from hildanext.api.connections import Room, patient_protocol
from hildanext.api.worker import Opened
from hildanext.config import Config
from hildanext.engines.choose import choose
from hildanext.errors import ConfigError
from hildanext.progress import Console

SWITCH_SECONDS = 0.0005
IDLE_SECONDS = 30


def serve(config: Config, console: Console) -> dict[str, Any]:
    """Serve until a signal; returns the address served. ConfigError for an address that cannot be had, EngineError
    when no engine opens."""
    sys.setswitchinterval(SWITCH_SECONDS)  # the engine thread must hand the interpreter over before /health is late
    key, room = api_key(config), Room.of_this_process(console.warn)
    app = create_app(config, console, key, room=room, choice=settled)
    bound = _bind(config)
    address = _address(config.serve.host, bound.getsockname()[1])
    settings = uvicorn.Config(
        app, http=patient_protocol(room, IDLE_SECONDS), backlog=room.backlog, log_level="warning", access_log=False,
        server_header=False, timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=config.serve.shutdown_seconds, ws="none", lifespan="on",
    )  # fmt: skip
    server = Draining(settings, app, config.serve.drain_seconds, console)
    console.say(f"serving on {address} ({'API key needed' if key else 'no API key'}); Ctrl-C stops")
    threading.Thread(target=_stop_without_engine, args=(app, server), daemon=True).start()
    server.run(sockets=[bound])
    error = app.state.server.worker.error
    if error is not None:
        raise error
    return {"address": address}


class Draining(uvicorn.Server):
    """A server whose first SIGTERM, where `seconds` is above 0, makes /health say draining and connections end with
    their answer; after so long it stops as on any signal: no new connection, what runs is finished."""

    def __init__(self, settings: uvicorn.Config, app: FastAPI, seconds: float, console: Console) -> None:
        super().__init__(settings)
        self.app, self.seconds, self.console = app, seconds, console

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM and SIGINT; a second signal while it drains stops at once."""
        state = self.app.state.server
        if sig != signal.SIGTERM or not self.seconds or state.draining:
            super().handle_exit(sig, frame)
            return
        state.draining = True
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        queued = self.app.state.server.fleet.queued
        self.console.say(f"draining for {self.seconds:g} s: /health says so; {queued} requests wait or run")
        time.sleep(self.seconds)
        super().handle_exit(signal.SIGTERM, None)


def settled(config: Config, console: Console) -> Opened:
    """The engine the configuration chooses. What is loaded by then is taken out of garbage collection for good: a full
    collection walks every object of torch and transformers (0.4 million) and holds the interpreter, and every answer,
    for a tenth of a second and more. EngineError when none opens."""
    found = choose(config, console)
    gc.collect()
    gc.freeze()
    return found


def _bind(config: Config) -> socket.socket:
    host, port = config.serve.host, config.serve.port
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY only where the protocol is named
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
    except OSError as error:
        raise ConfigError(
            f"serve.host, serve.port: {host}:{port} cannot be had ({error.strerror or error}); take another port, or 0"
        ) from error
    return bound


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stop_without_engine(app: FastAPI, server: uvicorn.Server) -> None:
    worker = app.state.server.worker
    while worker.state == "loading":
        time.sleep(0.1)
    if worker.state == "failed":
        server.should_exit = True
