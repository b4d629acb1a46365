# What the routes share: configuration, models, metrics, jobs; and how one generation is run for a client.
# Entry points: Server, server_of, Answering (events, result, cancel), Generation (one of them), results, log_result.
# A generation ends when its result is there, its time is up or its client goes away, whichever comes first.
"""Shared state of the routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from fastapi import Request as HttpRequest

from hildanext.api.fleet import UP, Fleet, Slot
from hildanext.api.jobs import Jobs
from hildanext.api.metrics import ServerMetrics
from hildanext.api.replies import ApiError
from hildanext.api.tickets import Admitted, Ticket
from hildanext.api.worker import Worker
from hildanext.config import Config
from hildanext.decoding.events import Done, Event
from hildanext.decoding.modes import known_mode
from hildanext.decoding.request import Request, Result
from hildanext.errors import DecodeError, HildaError

PING_SECONDS = 10.0


@dataclass
class Server:
    """One server process."""

    config: Config
    fleet: Fleet
    metrics: ServerMetrics
    jobs: Jobs
    started: float = field(default_factory=time.monotonic)
    draining: bool = False

    @property
    def worker(self) -> Worker:
        """The worker that /health speaks of."""
        return self.fleet.front

    def model(self, name: str | None = None) -> Slot:
        """The model of that name, the first for None. ApiError 503 while none is served, 404 for another name."""
        if self.fleet.state not in UP:
            raise ApiError(503, f"the engine is {self.fleet.state} {self.worker.problem}".strip(), Retry_After="5")
        return self.fleet.find(name)

    def admit(
        self, request: Request, model: Slot, drafts: bool = False, count: int = 1, first: int = 0
    ) -> list[Generation]:
        """Queue `count` samples of a request to a model, numbered from `first`. ApiError 429 when the queue cannot take
        them."""
        self._check(request, count)
        queued = self.fleet.queued
        if queued + count > self.config.serve.queue:
            wait = str((model.worker or self.worker).wait_seconds())
            raise ApiError(429, f"queue: {queued} requests wait or run; retry in {wait} s", Retry_After=wait)
        copies = [request.model_copy(update={"sample": number}) for number in range(first, first + count)]
        given = self.fleet.submit(model, copies, drafts, asyncio.get_running_loop())
        return [Generation(worker, ticket, self.config.serve.request_seconds) for worker, ticket in given]

    def _check(self, request: Request, count: int) -> None:
        try:
            known_mode(request.mode or self.config.decode.mode, self.config.decode.modes)
        except DecodeError as error:
            raise ApiError(422, str(error), "mode") from error
        limits, new = self.config.serve, request.max_new_tokens or 0
        if new > limits.new_tokens:
            text = f"max_new_tokens: {new} asked for, at most {limits.new_tokens} are served here"
            raise ApiError(400, text, "max_new_tokens")
        characters = len(request.prompt or "") + len(request.suffix or "")
        characters += sum(len(str(turn["content"])) for turn in request.messages or ())
        if max(characters, len(request.prompt_ids or ())) > limits.prompt_characters:
            text = f"prompt: {characters} characters, at most {limits.prompt_characters} are read"
            raise ApiError(413, text, "prompt")
        if count > limits.samples:
            raise ApiError(400, f"n: {count} samples asked for, at most {limits.samples} are served here", "n")


class Answering(Protocol):
    """What a route waits for: one generation, or something that is made of several."""

    async def admitted(self) -> None:
        """Wait until the engine accepts; raises what refuses it, so that a stream can still answer with a status."""

    def events(self) -> AsyncIterator[Event | None]:
        """Events up to Done; None every ten quiet seconds. However it ends, the engine stops working on it."""
        ...

    async def result(self) -> Result:
        """The finished result."""
        ...

    def cancel(self) -> None:
        """The engine is to stop working on it; safe to call twice and after the end."""


@dataclass
class Generation:
    """One ticket and its deadline."""

    worker: Worker
    ticket: Ticket
    seconds: float

    async def admitted(self) -> None:
        """Wait until the engine accepts; raises what refuses it, so that a stream can still answer with a status."""
        await self._next(self._left())

    def _left(self) -> float:
        return self.ticket.created + self.seconds - time.monotonic()

    async def _next(self, seconds: float) -> Event | Admitted:
        try:
            item = await asyncio.wait_for(self.ticket.events.get(), max(0.0, seconds))
        except TimeoutError:
            if self._left() > 0:
                raise
            raise ApiError(504, f"time: not finished after {self.seconds:g} seconds; ask for fewer tokens") from None
        if isinstance(item, HildaError):
            raise item
        return item

    async def events(self) -> AsyncIterator[Event | None]:
        """Events up to Done; None every ten quiet seconds. However it ends, the engine stops working on it."""
        try:
            while True:
                try:
                    event = await self._next(min(PING_SECONDS, self._left()))
                except TimeoutError:
                    yield None
                    continue
                if not isinstance(event, Admitted):
                    yield event
                if isinstance(event, Done):
                    return
        finally:
            self.cancel()

    def cancel(self) -> None:
        """The engine is to stop working on it; safe to call twice and after the end."""
        self.worker.cancel(self.ticket)

    async def result(self) -> Result:
        """The finished result."""
        async for event in self.events():
            if isinstance(event, Done):
                return event.result
        raise ApiError(500, "the generation ended without a result")


async def results(generations: Sequence[Answering], http: HttpRequest) -> list[Result]:
    """Every result, or CancelledError inside the engine when the client goes away first."""
    work = [asyncio.ensure_future(generation.result()) for generation in generations]
    watch = asyncio.ensure_future(_gone(http))
    everything = asyncio.gather(*work)
    try:
        both: list[asyncio.Future[Any]] = [everything, watch]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not everything.done():
            raise ApiError(499, "the client went away")
        return list(everything.result())
    finally:
        for task in (*work, watch):
            task.cancel()
        await asyncio.gather(*work, watch, everything, return_exceptions=True)


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        continue


def server_of(http: HttpRequest) -> Server:
    """The server of a request."""
    return cast(Server, http.app.state.server)


def log_result(http: HttpRequest, *found: Result) -> None:
    """Put tokens, forwards and engine of the results into the request's log line."""
    fields: dict[str, Any] = http.scope.get("log", {})
    fields["tokens"] = fields.get("tokens", 0) + sum(result.metrics.tokens for result in found)
    fields["forwards"] = fields.get("forwards", 0) + sum(result.metrics.forwards for result in found)
    fields["engine"] = found[0].engine if found else None
