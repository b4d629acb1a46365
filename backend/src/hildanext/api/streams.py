# Server-sent events: a generation for the page, files of a run for its followers.
# Entry points: event_stream, generation_events, follow.
# A quiet stream sends a comment now and then, so that proxies keep it open and a vanished reader is noticed.
"""Streams of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.sse import EventSourceResponse, format_sse_event

from hildanext.api.job_files import FINAL, JobFiles, parsed
from hildanext.api.replies import ApiError, told
from hildanext.api.state import Generation, log_result
from hildanext.decoding.events import Commit, Done, Draft
from hildanext.errors import HildaError

FOLLOW_SECONDS = 0.5
QUIET_POLLS = 20
PIECE_BYTES = 1 << 20
PING = format_sse_event(comment="quiet")
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One JSON object, or server-sent events where they were asked for.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def event(name: str, value: Any) -> bytes:
    """One event with a JSON value."""
    return format_sse_event(event=name, data_str=json.dumps(value))


def event_stream(content: AsyncIterator[bytes]) -> EventSourceResponse:
    """The response of a stream; proxies are told not to buffer it."""
    return EventSourceResponse(content, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})


async def generation_events(generation: Generation, http: HttpRequest, trace: bool) -> AsyncIterator[bytes]:
    """draft and commit events, then done (the reply of the plain form) or error."""
    try:
        async for item in generation.events():
            if item is None:
                yield PING
            elif isinstance(item, Done):
                log_result(http, item.result)
                yield event("done", done_value(item, trace))
            else:
                yield event(item.kind, _plain(item))
    except (HildaError, ApiError) as error:
        yield event("error", told(error, http.url.path))


def _plain(item: Draft | Commit) -> dict[str, Any]:
    if isinstance(item, Commit):
        known = {} if item.record is None else {"record": [asdict(one) for one in item.record]}
        known |= {} if item.told is None else {"told": [asdict(one) for one in item.told]}
        return {name: value for name, value in vars(item).items() if name not in ("record", "told")} | known
    return {**vars(item), "tokens": [vars(token) for token in item.tokens]}


def done_value(done: Done, trace: bool) -> dict[str, Any]:
    """The result as the reply of /generate."""
    return done.result.as_dict() | ({"trace": list(done.result.trace)} if trace else {})


async def follow(files: JobFiles, names: dict[str, str]) -> AsyncIterator[bytes]:
    """Lines of growing files as events, from their beginning, until the run has ended. names: file -> event name;
    lines of .jsonl files are sent as objects."""
    offsets, quiet = dict.fromkeys(names, 0), 0
    while True:
        state = await asyncio.to_thread(files.state)
        sent = False
        for name, kind in names.items():
            lines, offsets[name] = await asyncio.to_thread(_new_lines, files.path / name, offsets[name])
            for line in lines:
                value = parsed(line) if name.endswith(".jsonl") else line
                sent = True
                yield event(kind, value)
        if state in FINAL and not sent:
            yield event("end", {"state": state})
            return
        quiet = 0 if sent else quiet + 1
        if quiet % QUIET_POLLS == QUIET_POLLS - 1:
            yield PING
        await asyncio.sleep(0.0 if sent else FOLLOW_SECONDS)


def _new_lines(path: Path, offset: int) -> tuple[list[str], int]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            piece = file.read(PIECE_BYTES)
    except OSError:
        return [], offset
    whole = piece[: piece.rfind(b"\n") + 1] if len(piece) < PIECE_BYTES or b"\n" in piece else piece
    return whole.decode("utf-8", "replace").splitlines(), offset + len(whole)
