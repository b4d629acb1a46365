# Driving an engine until requests are done: one of them as a stream, or many to their end.
# Entry points: Driver (submit, step, cancel, stream, generate, run), Steps (what it drives).
# Requests share the engine: whoever waits moves all of them on, and events of the others are kept for their readers.
"""Requests through an engine, to their end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from hildanext.decoding.events import Done, Event, Failed
from hildanext.decoding.request import Request, Result
from hildanext.errors import RunError


class Steps(Protocol):
    """An engine as its driver sees it. Not thread-safe: one thread submits, steps and cancels."""

    @property
    def pending(self) -> int:
        """Requests submitted and not done."""
        ...

    def submit(self, request: Request, drafts: bool = False) -> int:
        """Queue a request; its number is in its events. drafts: report the opened blocks too."""
        ...

    def step(self) -> Sequence[Event | Failed]:
        """Move every admitted request on; what happened. It returns at once when nothing is pending, and raises only
        where no request can go on."""
        ...

    def cancel(self, number: int) -> Result | None:
        """End a request at once; its result so far, or None if it is not here."""
        ...


class Driver:
    """An engine with the events that nobody has taken yet (`backlog`)."""

    def __init__(self, engine: Steps, backlog: Sequence[Event | Failed] = ()) -> None:
        self.engine, self.backlog = engine, list(backlog)

    @property
    def pending(self) -> int:
        """Requests submitted and not done."""
        return self.engine.pending

    def submit(self, request: Request, drafts: bool = False) -> int:
        """Queue a request; its number is in its events. DecodeError: it cannot be served."""
        return self.engine.submit(request, drafts)

    def _moved(self) -> Sequence[Event | Failed]:
        return self.engine.step()

    def step(self) -> list[Event | Failed]:
        """Move every admitted request on; what happened, after what a stream beside it has left."""
        new = self._moved()
        left, self.backlog = self.backlog, []
        return [*left, *new]

    def cancel(self, number: int) -> Result | None:
        """End a request at once and drop its events; its result so far, or None if it is not here."""
        self.backlog = [event for event in self.backlog if event.request != number]
        return self.engine.cancel(number)

    def stream(self, request: Request, drafts: bool = True) -> Iterator[Event]:
        """Events of one request up to its end; closing the iterator cancels it. Raises where it fails. Other requests
        move on meanwhile and keep their events."""
        number = self.submit(request, drafts)
        try:
            yield from self._events([number])
        finally:
            self.cancel(number)

    def generate(self, request: Request) -> Result:
        """The result of one request."""
        return self.run([request])[0]

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """The results of all, in their order, decoded together. Raises where one is refused or fails, and then ends
        the others."""
        numbers: list[int] = []
        try:
            for request in requests:
                numbers.append(self.submit(request))
            events = [event for event in self._events(numbers) if isinstance(event, Done)]
        finally:
            for number in numbers:
                self.cancel(number)
        found = {event.request: event.result for event in events}
        if len(found) < len(numbers):
            raise RunError(f"engine: {len(numbers) - len(found)} requests ended without a result; see the log")
        return [found[number] for number in numbers]

    def _events(self, numbers: Sequence[int]) -> Iterator[Event]:
        left = set(numbers)
        while left and (self.pending or any(event.request in left for event in self.backlog)):
            events = self.step()
            self.backlog += [event for event in events if event.request not in left]
            for event in [event for event in events if event.request in left]:
                if isinstance(event, Failed):
                    raise event.error
                yield event
                if isinstance(event, Done):
                    left.discard(event.request)
