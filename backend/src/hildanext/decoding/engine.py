# The decoder of many requests: each step is one forward over all their windows, each request at its own pace.
# Entry points: BlockEngine (submit, step, cancel, preempt, generate, stream, pending).
# Keys and values are kept only from a forward whose input was final, so cached text equals uncached text.
"""Block-diffusion engine with an exact block cache and continuous batching."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from hildanext.config.decode import DecodeConfig
from hildanext.decoding.canvas import RequestCanvas, Window
from hildanext.decoding.events import Done, Event
from hildanext.decoding.forward import ForwardRow, forward
from hildanext.decoding.kv_store import KVStore, bytes_per_position
from hildanext.decoding.live import Live
from hildanext.decoding.modes import resolve_mode
from hildanext.decoding.prompt import Bounds, end_ids, prepare
from hildanext.decoding.request import Request, Result
from hildanext.decoding.text import TextStream
from hildanext.errors import DecodeError

DEFAULT_BLOCK = 32
UNBOUNDED = 1 << 40


@dataclass(frozen=True)
class Seat:
    """One row of a forward: whose, and which of its sequences (1: the one guidance subtracts)."""

    live: Live
    lane: int
    row: ForwardRow


class BlockEngine:
    """Requests in, events out. `loaded` has .denoiser, .tokenizer (or None) and .meta; not thread-safe: one caller."""

    def __init__(self, loaded: Any, config: DecodeConfig) -> None:
        self.denoiser, self.tokenizer, self.meta, self.config = loaded.denoiser, loaded.tokenizer, loaded.meta, config
        self.store = KVStore()
        self.waiting: deque[Live] = deque()
        self.running: list[Live] = []
        self.forwards = 0
        self._numbers = count()
        self._backlog: list[Event] = []
        self._prefilled = False
        self._look_back = 0 if getattr(self.denoiser, "shift", "none") == "none" else 1

    @property
    def pending(self) -> int:
        """Requests that are waiting or running."""
        return len(self.waiting) + len(self.running)

    @property
    def block(self) -> int:
        """Block size of requests that name none: the configuration's, else the model folder's, else 32."""
        return self.config.block or getattr(self.meta, "block", 0) or DEFAULT_BLOCK

    @property
    def window(self) -> int:
        """Positions a request may have: the smaller of the model's and the configuration's window; 0: no bound."""
        own = getattr(getattr(self.denoiser, "config", None), "max_position_embeddings", 0) or 0
        return min(own, self.config.window) if own and self.config.window else own or self.config.window

    @property
    def vocabulary(self) -> int:
        """Token ids the model knows, a count; 0 where the denoiser does not say."""
        return int(getattr(self.denoiser, "vocab_size", 0))

    def submit(self, request: Request, drafts: bool = False) -> int:
        """Queue a request; its number is in its events. drafts: also report the active block after every step.
        DecodeError where it can never be served."""
        plan = resolve_mode(request, self.config, getattr(self.meta, "decode", None) or {})
        new = self.config.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        limits = Bounds(request.block or self.block, self.window, new, self.denoiser.mask_id, self.vocabulary)
        prepared = prepare(request, self.tokenizer, limits)
        canvas = RequestCanvas(prepared.blocks, prepared.tokens, prepared.editable, limits.mask_id)
        ends = end_ids(request, self.tokenizer, getattr(self.denoiser, "model", None))
        text = TextStream(self.tokenizer, prepared.prompt, request.stop, ends)
        seed = self.config.seed if request.seed is None else request.seed
        live = Live(
            next(self._numbers), request, plan, canvas, text, ends, seed, drafts, prepared.blocks.given,
            getattr(self.denoiser, "exact", True), prepared.notes,
        )  # fmt: skip
        self._check_fits(live)
        self.waiting.append(live)
        return live.number

    def _check_fits(self, live: Live) -> None:
        most = self.config.kv_bytes // self._position_bytes()
        if live.lanes * live.canvas.blocks.length > most:
            raise DecodeError(
                f"request: {live.lanes * live.canvas.blocks.length} positions of keys and values exceed the {most} "
                f"that decode.kv_bytes={self.config.kv_bytes} holds; shorten it or raise the limit"
            )

    def _position_bytes(self) -> int:
        config = getattr(self.denoiser, "config", None)
        dtype = getattr(self.denoiser, "dtype", torch.float32)
        return max(1, bytes_per_position(config, dtype.itemsize)) if config is not None else 1

    def step(self) -> list[Event]:
        """Admit what fits, run one forward over the windows whose turn it is, and report what happened."""
        events, self._backlog = self._backlog, []
        self._admit()
        turn = self._turn()
        if turn:
            with torch.no_grad():
                logits = self._forward(turn)
            for live, window in turn.items():
                events += self._advance(live, window, logits[live])
            # only now may slots move: what the forward wrote is kept by every row's commit above
            events += [self._finish(live) for live in turn if live.finish is not None]
        return events

    def _admit(self) -> None:
        while self.waiting and self._has_room(self.waiting[0]):
            live = self.waiting.popleft()
            if self.config.cache:
                everyone, most = [*self.running, live], self.config.kv_bytes // self._position_bytes()
                longest = max(each.canvas.blocks.length for each in everyone)
                self.store.reserve(sum(each.lanes for each in everyone), longest, most)
                live.slots = [self.store.add() for _ in range(live.lanes)]
            self.running.append(live)

    def _has_room(self, live: Live) -> bool:
        everyone = [*self.running, live]
        lanes = sum(each.lanes for each in everyone)
        positions = lanes * max(each.canvas.blocks.length for each in everyone)
        windows = sum(2 * each.lanes * each.canvas.blocks.block for each in everyone)
        fits = positions * self._position_bytes() <= self.config.kv_bytes and windows <= self.config.step_tokens
        return not self.running or (fits and len(everyone) <= self.config.requests)

    def _turn(self) -> dict[Live, Window]:
        windows = {live: self._window(live) for live in self.running}
        filling = {live: window for live, window in windows.items() if window.size > 2 * live.canvas.blocks.block}
        decoding = {live: window for live, window in windows.items() if live not in filling}
        self._prefilled = bool(filling) and not (self._prefilled and decoding)
        return self._within_budget(filling) if self._prefilled else decoding

    def _window(self, live: Live) -> Window:
        if not self.config.cache:
            return live.canvas.window(UNBOUNDED, True)
        return live.canvas.window(self.config.step_tokens // live.lanes, self.config.fuse)

    def _within_budget(self, filling: dict[Live, Window]) -> dict[Live, Window]:
        chosen: dict[Live, Window] = {}
        for live, window in filling.items():
            rows = live.lanes + sum(each.lanes for each in chosen)
            widest = max(window.size, *(each.size for each in chosen.values())) if chosen else window.size
            if not chosen or rows * widest <= self.config.step_tokens:
                chosen[live] = window
        return chosen

    def _forward(self, turn: dict[Live, Window]) -> dict[Live, list[Tensor]]:
        rows = [
            Seat(live, lane, row)
            for live, window in turn.items()
            for lane, row in enumerate(live.rows(window, self._look_back))
        ]
        logits: dict[Live, dict[int, Tensor]] = {live: {} for live in turn}
        device = getattr(self.denoiser, "device", torch.device("cpu"))
        for run in _consecutive(rows) if self.config.cache else [rows]:
            self.forwards += 1
            found = forward(
                self.denoiser, self.store if self.config.cache else None, [seat.row for seat in run], device
            )
            for seat, scores in zip(run, found, strict=True):
                logits[seat.live][seat.lane] = scores
            for live in {seat.live for seat in run}:
                live.counters.forwards += 1
        return {live: [lanes[lane] for lane in sorted(lanes)] for live, lanes in logits.items()}

    def _advance(self, live: Live, window: Window, logits: list[Tensor]) -> list[Event]:
        self._commit(live, window.final_on_entry)
        if window.active is None:
            return []
        step, events = live.advance(logits)
        if step.committed_on_entry:
            self._commit(live, window.active.stop - window.active.start)
        return events

    def _finish(self, live: Live) -> Event:
        self._leave(live)
        return live.done()

    def _commit(self, live: Live, positions: int) -> None:
        if self.config.cache and positions:
            live.canvas.committed += positions
            for slot in live.slots:
                self.store.commit(slot, positions)

    def _leave(self, live: Live) -> None:
        self.running.remove(live)
        while live.slots:
            moved = self.store.release(hole := live.slots.pop())
            for other in self.running:
                other.slots = [hole if slot == moved else slot for slot in other.slots]
            live.slots = [hole if slot == moved else slot for slot in live.slots]

    def cancel(self, number: int) -> Result | None:
        """End a request at once and free its keys and values; its result so far, or None if it is not here. What it has
        not reported yet is dropped."""
        self._backlog = [event for event in self._backlog if event.request != number]
        for live in [*self.running, *self.waiting]:
            if live.number == number:
                self._remove(live)
                return live.result()
        return None

    def _remove(self, live: Live) -> None:
        if live in self.running:
            self._leave(live)
        else:
            self.waiting.remove(live)

    def preempt(self, number: int) -> None:
        """Take a running request off the store and put it first in the queue; its text does not change."""
        for live in [each for each in self.running if each.number == number]:
            self._leave(live)
            live.canvas.committed = 0
            self.waiting.appendleft(live)

    def generate(self, request: Request) -> Result:
        """Decode one request to its end; other requests of this engine move on meanwhile and keep their events."""
        for event in self._events(self.submit(request)):
            if isinstance(event, Done):
                return event.result
        raise ValueError("engine: a request ended without a result")

    def stream(self, request: Request) -> Iterator[Event]:
        """Drafts, commits and the end of one request; closing the iterator cancels it."""
        number = self.submit(request, drafts=True)
        try:
            yield from self._events(number)
        finally:
            self.cancel(number)

    def _events(self, number: int) -> Iterator[Event]:
        while self.pending or any(event.request == number for event in self._backlog):
            events = self.step()
            self._backlog += [event for event in events if event.request != number]
            for event in [event for event in events if event.request == number]:
                yield event
                if isinstance(event, Done):
                    return


def _consecutive(seats: Sequence[Seat]) -> list[list[Seat]]:
    runs: list[list[Seat]] = []
    for seat in sorted(seats, key=_slot):
        if runs and runs[-1][-1].row.slot + 1 == seat.row.slot:
            runs[-1].append(seat)
        else:
            runs.append([seat])
    return runs


def _slot(seat: Seat) -> int:
    return seat.row.slot
