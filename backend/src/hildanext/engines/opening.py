# Generation for callers without a server: open the configured engine, run one request, or stream it.
# Entry points: open_engine, OpenEngine (submit, step, stream, generate, cancel, close).
# hildanext.generate, which is text in and text out, is in model.py.
"""Functions over an open engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hildanext.config import Config
from hildanext.decoding.events import Done, Event
from hildanext.decoding.request import Request, Result
from hildanext.engines.choose import choose
from hildanext.engines.protocol import Failed, Session, signed
from hildanext.errors import RunError
from hildanext.progress import Console


@dataclass(frozen=True)
class OpenEngine:
    """A session and why the engines before it in the order did not open; backlog: events nobody has taken yet."""

    session: Session
    reasons: tuple[str, ...] = ()
    backlog: list[Event | Failed] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Requests submitted and not done."""
        return self.session.pending

    def submit(self, request: Request, drafts: bool = False) -> int:
        """Queue a request; its number is in its events. DecodeError: it cannot be served."""
        return self.session.submit(request, drafts)

    def step(self) -> list[Event | Failed]:
        """Move every admitted request on; what happened, after what a stream beside it has left."""
        new, name, reasons = self.session.step(), self.session.name, self.reasons
        left = list(self.backlog)
        self.backlog.clear()
        return [*left, *(event if isinstance(event, Failed) else signed(event, name, reasons) for event in new)]

    def cancel(self, number: int) -> Result | None:
        """End a request at once and drop its events; its result so far, or None if it is not here."""
        self.backlog[:] = [event for event in self.backlog if event.request != number]
        return self.session.cancel(number)

    def stream(self, request: Request, drafts: bool = True) -> Iterator[Event]:
        """Events of one request up to its end; closing the iterator cancels it. RunError where it fails. Other requests
        move on meanwhile and keep their events."""
        number = self.submit(request, drafts)
        try:
            yield from self._events(number)
        finally:
            self.cancel(number)

    def _events(self, number: int) -> Iterator[Event]:
        while self.session.pending or any(event.request == number for event in self.backlog):
            events = self.step()
            self.backlog.extend(event for event in events if event.request != number)
            for event in [event for event in events if event.request == number]:
                if isinstance(event, Failed):
                    raise event.error
                yield event
                if isinstance(event, Done):
                    return

    def generate(self, request: Request) -> Result:
        """The result of one request."""
        for event in self.stream(request, drafts=False):
            if isinstance(event, Done):
                return event.result
        raise RunError(f"engine {self.session.name}: the request ended without a result; see the log")

    def close(self) -> None:
        """Close the session."""
        self.session.close()


def open_engine(config: Config | None = None, console: Console | None = None) -> OpenEngine:
    """The engine the configuration (None: the default one) chooses. EngineError with every reason when none opens."""
    return OpenEngine(*choose(config or Config(), console or Console(quiet=True)))
