# The models of one server: which are loaded, which wait for room, which finish what they have begun and go.
# Entry points: Fleet (start, submit, reload, cards, state, stop), Slot.
# A worker per model that is loaded. One that must go gets no more requests, finishes its own, and then its memory is
# free: that is how the least recently used makes room, how a changed folder is loaded anew, and why neither ends an
# answer. Choosing a worker and giving it requests is one step under the lock, so none is given to one that left.
"""Several models behind one server."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hildanext.api.entries import Entry, Signature
from hildanext.api.metrics import ServerMetrics
from hildanext.api.replies import ApiError
from hildanext.api.tickets import Ticket
from hildanext.api.worker import Opened, Worker
from hildanext.decoding.request import Request
from hildanext.models.hardware import give_back
from hildanext.progress import Console

UP = ("ready", "degraded")
Opener = Callable[[Entry], Opened]


@dataclass(eq=False)
class Slot:
    """One model and its worker, None while it is not loaded. used: when it was asked for last, monotonic seconds."""

    entry: Entry
    worker: Worker | None = None
    used: float = 0.0
    signature: Signature = ()
    reloading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """What requests call it; its engine's word where the entry has none."""
        session = self.worker.session if self.worker else None
        return self.entry.name or (session.facts.model if session else "")

    @property
    def state(self) -> str:
        """not loaded | waiting (for room) | loading | ready | degraded | failed | stopped."""
        if self.worker is None:
            return "not loaded"
        return self.worker.state if self.worker.started else "waiting"


class Fleet:
    """room: bytes that loaded models may need together; None: no limit, which is what one model has."""

    def __init__(
        self, entries: Sequence[Entry], open_model: Opener, limit: int, metrics: ServerMetrics, console: Console,
        room: int | None = None,
    ) -> None:  # fmt: skip
        self.slots = [Slot(entry) for entry in entries]
        self.room, self.console = room, console
        self._open, self._limit, self._metrics = open_model, limit, metrics
        self._lock = threading.RLock()
        self._loading = threading.Lock()
        self._needs: dict[Worker, tuple[int, str]] = {}
        self._waiting: deque[Slot] = deque()
        self._first = self.slots[0].worker = self._new(self.slots[0])
        self._stopped = False

    def start(self) -> None:
        """Begin loading the first model; the others are loaded when they are asked for."""
        with self._lock:
            self._begin(self.slots[0])

    def stop(self, seconds: float = 10.0) -> None:
        """End every request and every thread."""
        with self._lock:
            self._stopped = True
            workers = {*self._needs, *(slot.worker for slot in self.slots if slot.worker)}
        for worker in workers:
            worker.stop(seconds)

    @property
    def front(self) -> Worker:
        """The worker that /health speaks of: the first model's, else that of the model used last among those loaded."""
        shown = sorted(self.slots[1:], key=lambda slot: -slot.used)
        up = [slot.worker for slot in (self.slots[0], *shown) if slot.worker and slot.worker.state in UP]
        return up[0] if up else self._first

    @property
    def state(self) -> str:
        """loading until the first model is there; ready or degraded while models are served; failed where none can."""
        front = self.front
        if len(self.slots) == 1 or self._first.state in ("loading", "failed"):
            return front.state
        faulty = [slot for slot in self.slots if slot.state in ("degraded", "failed")]
        return "degraded" if faulty else "stopped" if self._stopped else "ready"

    @property
    def problem(self) -> str:
        """What is wrong with a model, "" for nothing."""
        named = [(slot, slot.worker.problem) for slot in self.slots if slot.worker and slot.worker.problem]
        return "; ".join(f"{slot.entry.name}: {text}" if slot.entry.name else text for slot, text in named)

    @property
    def loaded(self) -> int:
        """How many models are in memory and answer."""
        return sum(slot.state in UP for slot in self.slots)

    @property
    def queued(self) -> int:
        """Requests that wait or decode, of all models, those that go too."""
        with self._lock:
            workers = {*self._needs, *(slot.worker for slot in self.slots if slot.worker)}
        return sum(worker.queued for worker in workers)

    def find(self, name: str | None) -> Slot:
        """The model of that name, the first for None. ApiError 404 for a name that is not served."""
        found = [slot for slot in self.slots if slot.name == name] if name is not None else self.slots
        if found:
            return found[0]
        here = ", ".join(repr(slot.name) for slot in self.slots)
        raise ApiError(404, f"model: no model {str(name)[:200]!r} here, this server has {here}", "model")

    def submit(
        self, slot: Slot, requests: Sequence[Request], drafts: bool, loop: asyncio.AbstractEventLoop
    ) -> list[tuple[Worker, Ticket]]:
        """Give requests to a model, which is loaded first where it is not; they wait as long as it takes."""
        with self._lock:
            slot.used = time.monotonic()
            if slot.worker is None or (slot.worker.state == "failed" and len(self.slots) > 1):
                slot.worker = self._new(slot)
                self._waiting.append(slot)
                self._settle()
            worker = slot.worker
            return [(worker, worker.submit(request, drafts, loop)) for request in requests]

    def cards(self) -> list[dict[str, Any]]:
        """Name, folder, state, bytes reckoned and requests of every model, in order."""
        with self._lock:
            return [
                {
                    "name": slot.name, "path": slot.entry.path, "state": slot.state, "needs_bytes": slot.entry.needs,
                    "requests": slot.worker.queued if slot.worker else 0,
                }
                for slot in self.slots
            ]  # fmt: skip

    def reload(self, slot: Slot, force: bool = False) -> dict[str, Any]:
        """Load a model's folder anew if it has changed since it was loaded (or `force`); blocks until it is there. What
        decodes already ends on the old weights. Where both do not fit into the room, requests wait for the new one.
        ApiError 409 while another reload of it runs, or when the folder cannot be loaded, which keeps the old one."""
        if not slot.reloading.acquire(blocking=False):
            raise ApiError(409, f"model: {slot.name!r} is being loaded anew already; ask again later")
        try:
            return self._reload(slot, force)
        finally:
            slot.reloading.release()

    def _reload(self, slot: Slot, force: bool) -> dict[str, Any]:
        old, name = slot.worker, slot.name
        if old is None or not old.started:
            return {"model": name, "reloaded": False, "reason": "it is not loaded; the next request loads the folder"}
        if not force and slot.signature == slot.entry.signature():
            return {"model": name, "reloaded": False, "reason": "the folder has not changed since it was loaded"}
        with self._lock:
            fresh, beside = self._new(slot), self.room is None or self._held() + slot.entry.needs <= self.room
            if beside:
                self._launch(slot, fresh)
            else:
                self._replace(slot, fresh)
                self._waiting.append(slot)
                self._settle()
        fresh.settled.wait()
        if fresh.error is not None:
            kept = "the old one goes on" if beside else "the old one is gone, for want of room for both"
            raise ApiError(409, f"model: {name!r} cannot be loaded anew ({fresh.error}); {kept}")
        with self._lock:
            if beside:
                self._replace(slot, fresh)
        self.console.say(f"model {name}: loaded anew from {slot.entry.path}")
        return {"model": name, "reloaded": True, "reason": "its folder has changed" if not force else "asked for"}

    def _new(self, slot: Slot) -> Worker:
        return Worker(partial(self._opened, slot), self._limit, self._metrics, self._ended)

    def _opened(self, slot: Slot) -> Opened:
        with self._loading:  # transformers sets torch's default dtype while it loads
            slot.signature = slot.entry.signature()
            return self._open(slot.entry)

    def _begin(self, slot: Slot) -> None:
        assert slot.worker is not None
        self._launch(slot, slot.worker)

    def _launch(self, slot: Slot, worker: Worker) -> None:
        self._needs[worker] = (slot.entry.needs, slot.entry.name)
        if len(self.slots) > 1:
            free = "" if self.room is None else f", {_gib(self.room - self._held())} GiB of room left"
            self.console.say(f"model {slot.entry.name}: loading ({_gib(slot.entry.needs)} GiB{free})")
        worker.start()

    def _replace(self, slot: Slot, fresh: Worker | None) -> None:
        old, slot.worker = slot.worker, fresh
        if old is self._first and fresh is not None:
            self._first = fresh
        if old is not None:
            old.leave()

    def _held(self) -> int:
        return sum(needs for needs, _ in self._needs.values())

    def _settle(self) -> None:
        while self._waiting and not self._stopped:
            slot = self._waiting[0]
            if self.room is None or self._held() + slot.entry.needs <= self.room:
                self._begin(self._waiting.popleft())
                continue
            staying = [one for one in self.slots if one.worker in self._needs and one.worker is not None]
            wanted = slot.entry.needs + sum(one.entry.needs for one in staying) - (self.room or 0)
            for victim in sorted(staying, key=lambda one: (bool(one.worker and one.worker.queued), one.used)):
                if wanted <= 0:
                    break
                wanted -= victim.entry.needs
                self.console.warn(
                    f"model {victim.name}: makes room for {slot.entry.name}; the next request loads it anew"
                )
                self._replace(victim, None)
            return

    def _ended(self, worker: Worker) -> None:
        if self._stopped:
            return
        if worker.state == "stopped":
            _free()
        with self._lock:
            _, name = self._needs.pop(worker, (0, ""))
            if worker.state == "stopped":
                self._metrics.unloaded()
                self.console.say(f"model {name or self.slots[0].name}: unloaded")
            self._settle()


def _free() -> None:
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()
    give_back()


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
