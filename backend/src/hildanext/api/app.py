# The application: routes, error replies, the gate; and what starts and stops with it.
# Entry points: create_app(config, console), api_key, rules.
# Tests give `opened` to serve a session of their own.
"""Application factory."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from hildanext import __version__
from hildanext.api import editors, job_panels, job_routes, model_routes, openai, pictures, routes, scoring
from hildanext.api.connections import Room, quiet_accept
from hildanext.api.entries import Entry, listed, room_of
from hildanext.api.fleet import Fleet
from hildanext.api.gate import LOOPBACK, Gate, GateRules
from hildanext.api.jobs import Jobs
from hildanext.api.metrics import ServerMetrics
from hildanext.api.replies import add_handlers
from hildanext.api.state import Server
from hildanext.api.worker import Opened
from hildanext.config import Config
from hildanext.engines.choose import choose
from hildanext.errors import ConfigError
from hildanext.progress import Console

KEY_VARIABLE = "HILDANEXT_API_KEY"
SHORTEST_KEY = 16


def api_key(config: Config) -> str | None:
    """The key that clients must send, taken out of the environment so that no child or config sees it, and blotted
    out where /proc shows what the process was started with; None for none.
    ConfigError for a short key, an unreadable file, or an address beyond loopback without any key."""
    serve = config.serve
    _blot(KEY_VARIABLE)
    key = os.environ.pop(KEY_VARIABLE, "").strip()
    if not key and serve.api_key_file:
        try:
            key = (Path(serve.api_key_file).read_text(encoding="utf-8").splitlines() or [""])[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"serve.api_key_file: {serve.api_key_file} cannot be read ({error})") from error
    if key and (len(key) < SHORTEST_KEY or not key.isascii()):
        raise ConfigError(
            f"API key: {len(key)} characters, expected at least {SHORTEST_KEY} ASCII ones; make a longer one"
        )
    if not key and serve.host not in LOOPBACK and not serve.insecure:
        raise ConfigError(
            f"serve.host: {serve.host} is beyond loopback, so clients need an API key; set {KEY_VARIABLE} or"
            " serve.api_key_file, or say --insecure"
        )
    return key or None


def _blot(name: str) -> None:
    if sys.platform != "linux" or name not in os.environ:
        return
    getenv = ctypes.CDLL(None).getenv
    getenv.restype, getenv.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    place = getenv(name.encode())
    if place:
        ctypes.memset(place, 0, len(ctypes.string_at(place)))


def rules(config: Config, key: str | None) -> GateRules:
    """Limits of the gate. On loopback only loopback names are answered to, so that no web page can reach the server by
    a name of its own."""
    serve = config.serve
    local = serve.host in LOOPBACK
    hosts = frozenset(name.lower() for name in serve.hosts) | (LOOPBACK if local or serve.hosts else frozenset())
    return GateRules(serve.body_bytes, serve.body_seconds, key, hosts)


def create_app(
    config: Config, console: Console, key: str | None = None, opened: Callable[[], Opened] | None = None,
    room: Room | None = None, choice: Callable[[Config, Console], Opened] = choose,
) -> FastAPI:  # fmt: skip
    """The application over the models of the configuration, each with the engine that `choice` takes, or over the
    session of `opened`; room: of connections."""
    metrics, entries = ServerMetrics(), listed(config)

    def open_model(entry: Entry) -> Opened:
        return opened() if opened is not None else choice(entry.config, console)

    memory = room_of(config, entries) if len(entries) > 1 else None
    fleet = Fleet(entries, open_model, config.serve.queue, metrics, console, memory)
    app = FastAPI(
        title="hildanext", version=__version__, lifespan=_lifespan, docs_url=None, redoc_url=None,
        description="A block-diffusion language model. Drafts may still change, commits are final.",
    )  # fmt: skip
    app.state.room = room
    server = app.state.server = Server(entries[0].config, fleet, metrics, Jobs(entries[0].config))
    jobs = (job_routes.router, job_panels.router)
    apart = (editors.router, scoring.router, model_routes.router, *jobs, pictures.router)
    for router in (routes.router, openai.router, *apart):
        app.include_router(router)
    _add_heads(app)
    app.mount("/static", StaticFiles(directory=routes.STATIC, packages=[("hildanext", "report/player")]), name="static")
    add_handlers(app)
    app.add_middleware(Gate, rules=rules(config, key), note=metrics.request, closing=lambda: server.draining)
    return app


def _add_heads(app: FastAPI) -> None:
    for route in [*routes.router.routes, *openai.router.routes, *model_routes.router.routes]:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(
                route.path, route.endpoint, methods=["HEAD"], response_model=None, include_in_schema=False
            )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    server: Server = app.state.server
    if app.state.room is not None:
        quiet_accept(app.state.room)
    server.fleet.start()
    server.jobs.start()
    yield
    server.jobs.stop()
    server.fleet.stop()
