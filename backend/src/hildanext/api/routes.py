# The native routes: health, modes, generate, metrics, the page.
# Entry points: router.
# Each route turns a body into a request, the engine's answer into a reply; decisions are elsewhere.
"""Native routes."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from hildanext import __version__
from hildanext.api.fleet import UP
from hildanext.api.replies import ApiError, served
from hildanext.api.schemas import GenerateBody, GenerateReply, Health, Modes
from hildanext.api.state import log_result, results, server_of
from hildanext.api.streams import EVENTS, event_stream, generation_events
from hildanext.config.decode import FRESH
from hildanext.decoding.request import Request

STATIC = Path(__file__).parent / "static"
router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page that shows diffusion happen."""
    return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})


@router.get("/fill", include_in_schema=False)
async def fill_page() -> FileResponse:
    """The page that writes a selected piece of a text anew."""
    return FileResponse(STATIC / "fill.html", headers={"cache-control": "no-cache"})


@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> Response:
    """The icon of the page."""
    return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")


@router.get("/health", response_model=Health, responses={503: {"model": Health}})
async def health(http: HttpRequest) -> Response:
    """Whether generations are served, by which engine, and why not by an earlier one. 503 while loading or failed."""
    server = server_of(http)
    worker, session, state = server.worker, server.worker.session, server.fleet.state
    ended = "the jobs thread has ended; restart the server" if server.jobs.ended else ""
    status = "failed" if ended and state in UP else "draining" if server.draining and state in UP else state
    reply = Health(
        status=status,
        problem=ended or server.fleet.problem or server.jobs.problem,
        engine=session.name if session else None,
        fallback=bool(worker.reasons),
        reasons=list(worker.reasons),
        capability=asdict(session.capability) if session else None,
        model=asdict(session.facts) if session else None,
        models=[{name: card[name] for name in card if name != "path"} for card in server.fleet.cards()],
        queue={"requests": server.fleet.queued, "limit": server.config.serve.queue},
        jobs=server.jobs.counts(),
        uptime_seconds=round(time.monotonic() - server.started, 3),
        version=__version__,
    )
    return JSONResponse(reply.model_dump(), 200 if status in UP else 503)


@router.get("/live", responses=served(503))
async def live(http: HttpRequest) -> dict[str, str]:
    """200 as long as restarting the process would not help: while it loads, serves or drains. 503 when it cannot."""
    server = server_of(http)
    if server.jobs.ended or server.fleet.state in ("failed", "stopped"):
        raise ApiError(503, f"{server.fleet.problem or server.jobs.ended}; restart the server")
    return {"status": "live"}


@router.get("/modes", response_model=Modes, responses=served(401))
async def modes(http: HttpRequest) -> dict[str, Any]:
    """The presets, the server's defaults and its limits."""
    config = server_of(http).config
    names = ("mode", "tau_mask", "tau_edit", "max_new_tokens", "seed", "temperature", "block")
    limits = ("new_tokens", "prompt_characters", "samples", "request_seconds")
    return {
        "modes": {name: section.values() for name, section in config.decode.modes.items()},
        "default": {name: getattr(config.decode, name) for name in names},
        "limits": {name: getattr(config.serve, name) for name in limits},
    }


@router.post(
    "/generate",
    response_model=GenerateReply,
    responses={**served(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504), **EVENTS},
)
async def generate(body: GenerateBody, http: HttpRequest) -> Any:
    """Generate text. With "stream": true the reply is a stream of the events draft (replaceable), commit (final text)
    and done (this same object), or error."""
    server = server_of(http)
    values = body.values()
    if values["messages"] is not None and values["seed"] is None:
        values["seed"] = FRESH
    request = Request.of(**values)
    generation = server.admit(request, server.model(body.model), drafts=body.stream)[0]
    if body.stream:
        await generation.admitted()
        return event_stream(generation_events(generation, http, request.trace))
    result = (await results([generation], http))[0]
    log_result(http, result)
    return JSONResponse(result.as_dict() | {"trace": list(result.trace) if request.trace else None})


@router.get("/metrics", response_class=PlainTextResponse, responses=served(401))
async def metrics(http: HttpRequest) -> PlainTextResponse:
    """Counters and gauges in Prometheus' text format."""
    server = server_of(http)
    jobs = server.jobs.counts()
    gauges = {
        "up": ("1 while generations are served.", float(server.fleet.state in UP)),
        "queue_requests": ("Requests waiting or decoding.", float(server.fleet.queued)),
        "draining": ("1 after SIGTERM, while what runs is finished.", float(server.draining)),
        "models_loaded": ("Models that are loaded.", float(server.fleet.loaded)),
        "jobs_running": ("Jobs running.", float(jobs["running"])),
        "jobs_queued": ("Jobs waiting.", float(jobs["queued"])),
        "uptime_seconds": ("Seconds since the server started.", time.monotonic() - server.started),
    }
    return PlainTextResponse(server.metrics.text(gauges), media_type="text/plain; version=0.0.4; charset=utf-8")
