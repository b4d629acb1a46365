# The OpenAI-compatible routes: models, completions, chat completions; streams are made of committed blocks.
# Entry points: router.
# Several prompts or samples become several requests of one batch; their chunks are told apart by `index`.
"""OpenAI-compatible routes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from fastapi.sse import format_sse_event

from hildanext.api.fleet import Slot
from hildanext.api.gaps import gap
from hildanext.api.openai_bodies import ChatBody, CompletionBody, OpenAIBody, refuse_grammar, refuse_unsupported
from hildanext.api.openai_logprobs import Offsets, Records, chat_logprobs
from hildanext.api.openai_tools import call_delta, message_calls
from hildanext.api.replies import ApiError, served, told
from hildanext.api.state import Answering, Server, log_result, results, server_of
from hildanext.api.streams import EVENTS, PING, event_stream
from hildanext.config.decode import FRESH
from hildanext.decoding.events import Commit, Done, Event
from hildanext.decoding.randomness import chosen
from hildanext.decoding.request import CallDelta, Request, Result
from hildanext.errors import HildaError

router = APIRouter(prefix="/v1", tags=["openai"])
REASONS = {"eos": "stop", "stop": "stop", "length": "length", "cancelled": "stop"}
ERRORS = served(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504)
DONE = format_sse_event(data_str="[DONE]")
Piece = tuple[int, Event | HildaError | ApiError | None]


@dataclass(frozen=True)
class Shape:
    """How one of the two routes writes its objects."""

    chat: bool
    model: str
    number: str
    created: int

    def head(self, chunk: bool) -> dict[str, Any]:
        """Fields of every object of this reply."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": self.number, "object": kind, "created": self.created, "model": self.model}

    def choice(self, index: int, result: Result) -> dict[str, Any]:
        """One finished choice."""
        body = {"message": self.message(index, result)} if self.chat else {"text": result.text}
        told = None if result.record is None else self.logprobs(result.record, Offsets())
        return {"index": index, **body, "logprobs": told, "finish_reason": reason_of(result)}

    def message(self, index: int, result: Result) -> dict[str, Any]:
        """What the assistant says and calls."""
        said = result.text if result.said is None else result.said
        if not result.tool_calls:
            return {"role": "assistant", "content": said}
        calls = message_calls(result.tool_calls, self.number, index)
        return {"role": "assistant", "content": said or None, "tool_calls": calls}

    def called(self, index: int, piece: CallDelta) -> dict[str, Any]:
        """One chunk of a reply that may call tools."""
        choice = {"index": index, "delta": call_delta(piece, self.number, index), "logprobs": None}
        return self.head(True) | {"choices": [choice | {"finish_reason": None}]}

    def logprobs(self, record: Records, offsets: Offsets) -> dict[str, Any]:
        """What a choice or a chunk says of its tokens."""
        return chat_logprobs(record) if self.chat else offsets.logprobs(record)

    def delta(self, index: int, text: str | None, reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        """One chunk; text None opens a chat message."""
        content: dict[str, Any] = {} if reason else {"content": text or ""}
        opening = {"role": "assistant"} if text is None and not reason else {}
        body = {"delta": opening | content} if self.chat else {"text": text or ""}
        return self.head(True) | {"choices": [{"index": index, **body, "logprobs": logprobs, "finish_reason": reason}]}


def reason_of(result: Result) -> str:
    """OpenAI's word for how a reply ended."""
    complete = result.tool_calls and result.finish_reason != "length"
    return "tool_calls" if complete else REASONS[result.finish_reason]


@router.get("/models", responses=served(401, 503))
async def models(http: HttpRequest) -> dict[str, Any]:
    """The models that are served, the first one being the one that /generate uses where it is told none."""
    server = server_of(http)
    server.model()
    return {"object": "list", "data": [_card(slot.name) for slot in server.fleet.slots]}


@router.get("/models/{name:path}", responses=served(401, 404, 503))
async def model(name: str, http: HttpRequest) -> dict[str, Any]:
    """The card of one model."""
    return _card(server_of(http).model(name).name)


@router.post("/completions", responses={**ERRORS, **EVENTS})
async def completions(body: CompletionBody, http: HttpRequest) -> Any:
    """Continue one or several prompts."""
    return await _serve(body, body.prompts(), http, chat=False)


@router.post("/chat/completions", responses={**ERRORS, **EVENTS})
async def chat_completions(body: ChatBody, http: HttpRequest) -> Any:
    """Answer a conversation."""
    return await _serve(body, [{"messages": tuple(turn.turn() for turn in body.messages)}], http, chat=True)


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(time.time()), "owned_by": "hildanext"}


async def _serve(body: OpenAIBody, prompts: list[dict[str, Any]], http: HttpRequest, chat: bool) -> Any:
    server = server_of(http)
    slot = server.model(body.model)
    refuse_unsupported(body)
    await refuse_grammar(body)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: only with stream", "stream_options")
    count = body.n or 1
    if len(prompts) * count > server.config.serve.samples:
        raise ApiError(
            400, f"n: {len(prompts) * count} samples, at most {server.config.serve.samples} per request", "n"
        )
    seed = chosen(FRESH if body.seed is None else body.seed)  # type: ignore[attr-defined]
    requests = [Request.of(**{**body.values(), "seed": seed}, **prompt) for prompt in prompts]
    generations = _admit_all(server, slot, requests, count, body.tried())
    shape = Shape(chat, body.model, f"{'chatcmpl' if chat else 'cmpl'}-{uuid4().hex[:24]}", int(time.time()))
    if body.stream:
        for generation in generations:
            await generation.admitted()
        usage = body.stream_options is not None and body.stream_options.include_usage
        return event_stream(_chunks(shape, generations, http, count if usage else 0))
    found = await results(generations, http)
    log_result(http, *found)
    choices = [shape.choice(index, result) for index, result in enumerate(found)]
    return JSONResponse(shape.head(False) | {"choices": choices, "usage": _usage(found, count)} | _ours(found))


def _admit_all(
    server: Server, slot: Slot, requests: list[Request], count: int, lengths: tuple[int, ...]
) -> list[Answering]:
    generations: list[Answering] = []
    seen: Counter[str] = Counter()
    try:
        for request in requests:
            first = seen[repr(request)]
            if lengths:
                generations += [gap(server, slot, request, lengths, first + number) for number in range(count)]
            else:
                generations += server.admit(request, slot, count=count, first=first)
            seen[repr(request)] += count
    except (ApiError, HildaError):
        for generation in generations:
            generation.cancel()
        raise
    return generations


def _usage(found: list[Result], count: int) -> dict[str, Any]:
    prompt = sum(result.metrics.prompt_tokens for result in found[::count])
    new = sum(result.metrics.tokens for result in found)
    cached = [result.metrics.cached_tokens for result in found[::count]]
    known = [one for one in cached if one is not None]
    details = {"prompt_tokens_details": {"cached_tokens": sum(known)}} if len(known) == len(cached) else {}
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new} | details


def _ours(found: list[Result]) -> dict[str, Any]:
    forwards = sum(result.metrics.forwards for result in found)
    known = [result.metrics for result in found if None not in (result.metrics.fused, result.metrics.positions)]
    fused, positions = sum(one.fused or 0 for one in known), sum(one.positions or 0 for one in known)
    costs = {"forwards": forwards} | ({"fused": fused, "positions": positions} if len(known) == len(found) else {})
    notes = list(dict.fromkeys(note for result in found for note in result.notes))
    first = found[0]
    said = {"engine": first.engine, "reasons": list(first.reasons), "exact": first.exact, "preset": first.preset}
    ruled = [result.metrics.grammar for result in found if result.metrics.grammar is not None]
    under = {name: sum(one[name] for one in ruled) for name in ("tokens", "forced", "forwards") if ruled}
    return {"hildanext": said | costs | {"seed": first.seed, "notes": notes} | ({"grammar": under} if ruled else {})}


async def _chunks(shape: Shape, generations: list[Answering], http: HttpRequest, usage: int) -> AsyncIterator[bytes]:
    done: dict[int, Result] = {}
    offsets = [Offsets() for _ in generations]
    try:
        for index in range(len(generations)):
            if shape.chat:
                yield _data(shape.delta(index, None))
        async for index, item in _merged(generations):
            if item is None:
                yield PING
            elif isinstance(item, HildaError | ApiError):
                yield _data(told(item, http.url.path))
                return
            elif isinstance(item, Commit) and (item.text or item.record or item.told):
                known = None if item.record is None else shape.logprobs(item.record, offsets[index])
                if item.told is None or known is not None:
                    yield _data(shape.delta(index, item.text if item.told is None else "", logprobs=known))
                for piece in item.told or ():
                    yield _data(shape.called(index, piece))
            elif isinstance(item, Done):
                done[index] = item.result
                yield _data(shape.delta(index, None, reason_of(item.result)) | _ours([item.result]))
        if usage:
            found = [done[index] for index in sorted(done)]
            yield _data(shape.head(True) | {"choices": [], "usage": _usage(found, usage)})
        yield DONE
    finally:
        log_result(http, *done.values())
        for generation in generations:
            generation.cancel()


def _data(value: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(value))


async def _merged(generations: list[Answering]) -> AsyncIterator[Piece]:
    queue: asyncio.Queue[Piece] = asyncio.Queue()
    pumps = [asyncio.ensure_future(_pump(index, one, queue)) for index, one in enumerate(generations)]
    left = len(pumps)
    try:
        while left:
            index, item = await queue.get()
            left -= isinstance(item, Done | HildaError | ApiError)
            yield index, item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(index: int, generation: Answering, queue: asyncio.Queue[Piece]) -> None:
    try:
        async for item in generation.events():
            queue.put_nowait((index, item))
    except (HildaError, ApiError) as error:
        queue.put_nowait((index, error))
