# One request on its way from a reader's event loop to the engine's thread and back.
# Entry points: Ticket, Admitted, Item (what a ticket's queue carries).
# Drafts are dropped for a reader that is slow; commits, ends and errors never.
"""Tickets of the worker."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from hildanext.decoding.events import Draft, Event
from hildanext.decoding.request import Request
from hildanext.errors import HildaError

DRAFTS_HELD = 256


@dataclass(frozen=True)
class Admitted:
    """The engine has accepted the request."""


Item = Event | Admitted | HildaError


@dataclass(eq=False)
class Ticket:
    """One request's way through the worker. `events` carries Admitted, then the engine's events up to Done, or the
    HildaError that refused or ended it."""

    request: Request
    drafts: bool
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Item] = field(default_factory=asyncio.Queue)
    number: int | None = None
    over: bool = False
    created: float = field(default_factory=time.monotonic)

    def deliver(self, item: Item) -> None:
        """Hand an event to the reader's loop; called by the worker thread."""
        try:
            self.loop.call_soon_threadsafe(self._put, item)
        except RuntimeError:
            return  # the loop is closed: the reader is gone

    def _put(self, item: Item) -> None:
        if not (isinstance(item, Draft) and self.events.qsize() > DRAFTS_HELD):
            self.events.put_nowait(item)
