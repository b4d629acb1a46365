# One thread drives the engine; requests reach it through tickets, events come back to the event loop they came from.
# Entry points: Worker (start, submit, cancel, leave, stop), opened.
# The engine is touched by this thread only. Whatever an engine or a plugin raises ends a request or a step, never the
# thread; should the thread end all the same, every ticket is told and /health is 503.
"""The thread around the engine's step loop."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from hildanext.api.metrics import ServerMetrics
from hildanext.api.tickets import Admitted, Ticket
from hildanext.decoding.events import Done, Event
from hildanext.decoding.request import Request
from hildanext.engines.protocol import Failed, Session, signed
from hildanext.errors import HildaError, RunError, first_line
from hildanext.progress import show_traceback

State = Literal["loading", "ready", "degraded", "failed", "stopped"]
IDLE_SECONDS = 0.2
DEGRADED_SECONDS = 60.0
CLOSING = "server: shutting down; send the request again"
Opened = tuple[Session, tuple[str, ...]]


class Worker:
    """Opens the engine, then alternates between new tickets and engine steps until it is stopped."""

    def __init__(
        self, open_session: Callable[[], Opened], limit: int, metrics: ServerMetrics,
        ended: Callable[[Worker], None] = lambda worker: None,
    ) -> None:  # fmt: skip
        self.state: State = "loading"
        self.settled = threading.Event()
        self.problem = ""
        self.reasons: tuple[str, ...] = ()
        self.session: Session | None = None
        self.error: HildaError | None = None
        self._open, self._limit, self._metrics = open_session, limit, metrics
        self._inbox: queue.SimpleQueue[tuple[str, Ticket | None] | None] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._failed_at = 0.0
        self._leaving = False
        self._ended = ended
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin opening the engine; returns at once."""
        self._thread.start()

    def leave(self) -> None:
        """End the thread and let the engine go once every request that was given to it has ended; the caller gives it
        no more."""
        self._leaving = True
        self._inbox.put(("wake", None))

    def stop(self, seconds: float = 10.0) -> None:
        """End every request and the thread."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(seconds)
        elif self._thread.ident is None:
            self.state = "stopped"
            self._drain()

    @property
    def started(self) -> bool:
        """Whether it was told to open its engine."""
        return self._thread.ident is not None

    @property
    def queued(self) -> int:
        """Requests that are waiting or decoding."""
        return self._count

    @property
    def full(self) -> bool:
        """Whether another request would exceed the limit."""
        return self._count >= self._limit

    def submit(self, request: Request, drafts: bool, loop: asyncio.AbstractEventLoop) -> Ticket:
        """Queue a request; its events arrive on `loop`."""
        ticket = Ticket(request, drafts, loop)
        with self._lock:
            self._count += 1
        self._inbox.put(("submit", ticket))
        if self.state in ("failed", "stopped"):
            self._drain()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request whose reader is gone; safe to call twice and after the end."""
        if not ticket.over:
            self._inbox.put(("cancel", ticket))

    def wait_seconds(self) -> int:
        """A guess of when a place is free, for Retry-After."""
        batch = self.session.capability.batch if self.session else 1
        return max(1, round(self._metrics.mean_seconds() * self._count / max(1, batch)))

    def _run(self) -> None:
        try:
            if self._open_session():
                self._serve()
        except BaseException as error:
            show_traceback(error)
            self.state, self.problem = "failed", f"the engine thread ended ({type(error).__name__}: {error}); restart"
        finally:
            self.state = self.state if self.state == "failed" else "stopped"
            self._drain()
            self.settled.set()
            self._ended(self)

    def _serve(self) -> None:
        while True:
            try:
                if not self._messages():
                    break
                self._step()
                self._recover()
            except BaseException as error:
                self._broken(error)
                time.sleep(IDLE_SECONDS)  # an engine that fails at once would fill the log
        self._end_all(RunError(CLOSING))
        if self.session is not None:
            self.session.close()
        if self._leaving:
            self.session = None

    def _drain(self) -> None:
        error = self.error or RunError(CLOSING if self.state == "stopped" else f"server: {self.problem}")
        for ticket in list(self._tickets.values()):
            self._refuse(ticket, error)
        with suppress(queue.Empty):
            while True:
                message = self._inbox.get_nowait()
                if message is not None and message[1] is not None and not message[1].over:
                    self._refuse(message[1], error)

    def _open_session(self) -> bool:
        try:
            self.session, self.reasons = self._open()
        except HildaError as error:
            self.error = error
        except BaseException as error:
            self.error = RunError(f"engine: {type(error).__name__}: {error}")
            show_traceback(error)
        self.problem = str(self.error or "")
        self.state = "failed" if self.error else "ready"
        self.settled.set()
        return self.error is None

    def _pending(self) -> bool:
        try:
            return bool(self.session and self.session.pending)
        except BaseException as error:
            self._broken(error)
            return False

    def _messages(self) -> bool:
        wait = not self._pending()
        while True:
            try:
                message = self._inbox.get(timeout=IDLE_SECONDS) if wait else self._inbox.get_nowait()
            except queue.Empty:
                return not self._leaving or self._count > 0
            wait = False
            if message is None:
                return False
            self._handle(*message)

    def _handle(self, verb: str, ticket: Ticket | None) -> None:
        if ticket is None:
            return
        if verb == "submit":
            self._admit(ticket)
        elif not ticket.over:
            self._metrics.cancelled()
            self._finish(ticket)
            self._cancel(ticket)

    def _cancel(self, ticket: Ticket) -> None:
        if ticket.number is None or self.session is None:
            return
        try:
            self.session.cancel(ticket.number)
        except BaseException as error:
            self._broken(error)

    def _admit(self, ticket: Ticket) -> None:
        if self.session is None:
            raise ValueError("worker: a ticket before the session")
        try:
            ticket.number = self.session.submit(ticket.request, ticket.drafts)
        except HildaError as error:
            self._refuse(ticket, error)
            return
        except BaseException as error:
            show_traceback(error)
            text = f"engine: {type(error).__name__} while accepting the request ({first_line(error)})"
            self._refuse(ticket, RunError(text))
            return
        self._tickets[ticket.number] = ticket
        ticket.deliver(Admitted())

    def _refuse(self, ticket: Ticket, error: HildaError) -> None:
        self._finish(ticket)
        ticket.deliver(error)

    def _step(self) -> None:
        if self.session is None or not self._pending():
            return
        try:
            events = self.session.step()
        except BaseException as error:
            self._broken(error)
            return
        for event in events:
            self._told(event)

    def _recover(self) -> None:
        if self.state == "degraded" and time.monotonic() - self._failed_at > DEGRADED_SECONDS:
            self.state, self.problem = "ready", ""

    def _told(self, event: Event | Failed) -> None:
        ticket = self._tickets.get(event.request)
        if ticket is None:
            return
        try:
            self._deliver(ticket, event)
        except BaseException as error:
            show_traceback(error)
            self._degrade(f"{type(error).__name__}: {error}")
            self._refuse(ticket, RunError(f"engine: {type(error).__name__} in a result; send the request again"))
            self._cancel(ticket)

    def _deliver(self, ticket: Ticket, event: Event | Failed) -> None:
        if isinstance(event, Failed):
            self._degrade(str(event.error))
            self._refuse(ticket, event.error)
            return
        item = signed(event, self.session.name if self.session else "", self.reasons)
        if isinstance(event, Done):
            self._metrics.finished(event.result, time.monotonic() - ticket.created)
            self._finish(ticket)
        ticket.deliver(item)

    def _broken(self, error: BaseException) -> None:
        show_traceback(error)
        self._degrade(f"{type(error).__name__}: {error}")
        self._end_all(RunError(f"engine: a step failed ({type(error).__name__}); send the request again"))

    def _degrade(self, problem: str) -> None:
        self.state, self._failed_at, self.problem = "degraded", time.monotonic(), problem
        self._metrics.broken()

    def _end_all(self, error: HildaError) -> None:
        for ticket in list(self._tickets.values()):
            self._refuse(ticket, error)
        try:
            if self.session is not None:
                self.session.reset()
        except BaseException as failure:
            show_traceback(failure)

    def _finish(self, ticket: Ticket) -> None:
        if ticket.over:
            return
        ticket.over = True
        if ticket.number is not None:
            self._tickets.pop(ticket.number, None)
        with self._lock:
            self._count -= 1


def opened(session: Session, reasons: tuple[str, ...] = ()) -> Callable[[], Opened]:
    """An opener that returns an existing session."""
    return _Ready((session, reasons))


@dataclass(frozen=True)
class _Ready:
    value: Any

    def __call__(self) -> Opened:
        result: Opened = self.value
        return result
