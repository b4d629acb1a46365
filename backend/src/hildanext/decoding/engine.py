# The decoder of many requests: each step is one forward over all their windows, each request at its own pace.
# Entry points: BlockEngine (submit, step, cancel, preempt, generate, pending), Parts.
# It decides who takes part in which forward; what a request is at work on is in state.py, what a step does in step.py.
# Layer state is kept only from a forward whose input was final, so cached text equals uncached text.
"""Block-diffusion engine with an exact block cache and continuous batching."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from hildanext.config.decode import DecodeConfig
from hildanext.core.levenshtein import controls_of
from hildanext.core.types import Denoiser
from hildanext.decoding.admission import require
from hildanext.decoding.driver import Driver
from hildanext.decoding.events import Event
from hildanext.decoding.guide import Guide, guided
from hildanext.decoding.kept_keys import KeptKeys
from hildanext.decoding.modes import resolve_mode
from hildanext.decoding.parts import PartedCanvas
from hildanext.decoding.prompt import Bounds, Prepared, end_ids, prepare
from hildanext.decoding.randomness import chosen
from hildanext.decoding.request import Request, Result
from hildanext.decoding.search import Search, searched
from hildanext.decoding.seats import Seat, parties, seated
from hildanext.decoding.sharing import Sharing
from hildanext.decoding.state import Live, Opening, RequestCanvas, Window
from hildanext.decoding.step import advance, finished, result, rows
from hildanext.decoding.store import StateStore
from hildanext.decoding.text import TextStream
from hildanext.decoding.tools import with_tools
from hildanext.errors import DecodeError
from hildanext.models.meta import HildaMeta

DEFAULT_BLOCK = 32
UNBOUNDED = 1 << 40
NOTHING = torch.empty(0)


class Parts(Protocol):
    """What the engine reads of a loaded model."""

    @property
    def denoiser(self) -> Denoiser:
        """The model."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, or None: then requests give prompt_ids and get no text."""
        ...

    @property
    def meta(self) -> HildaMeta:
        """Its block size and its presets by mode."""
        ...


class BlockEngine:
    """Requests in, events out. Not thread-safe: one caller."""

    def __init__(self, loaded: Parts, config: DecodeConfig) -> None:
        self.denoiser, self.tokenizer, self.meta, self.config = loaded.denoiser, loaded.tokenizer, loaded.meta, config
        self.store = StateStore()
        self.sharing = Sharing(self.denoiser, self.store, config)
        self.waiting: deque[Live] = deque()
        self.running: list[Live] = []
        self.forwards = 0
        self._numbers = count()
        self._prefilled = False
        self._look_back = 0 if self.denoiser.shift == "none" else 1

    @property
    def pending(self) -> int:
        """Requests that are waiting or running."""
        return len(self.waiting) + len(self.running)

    @property
    def block(self) -> int:
        """Block size of requests that name none: the configuration's, else the model folder's, else 32."""
        return self.config.block or self.meta.block or DEFAULT_BLOCK

    @property
    def window(self) -> int:
        """Positions a request may have: the smaller of the model's and the configuration's window; 0: no bound."""
        own = self.denoiser.window
        return min(own, self.config.window) if own and self.config.window else own or self.config.window

    def submit(self, request: Request, drafts: bool = False) -> int:
        """Queue a request; its number is in its events. drafts: also report the opened blocks after every step.
        DecodeError where it can never be served."""
        request, tools = with_tools(request, self.tokenizer)
        plan = guided(resolve_mode(request, self.config, self.meta.decode), request)
        new = self.config.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        denoiser = self.denoiser
        bounds = Bounds(
            request.block or self.block, self.window, new, denoiser.mask_id, denoiser.vocab_size,
            self.meta.document_start, self.config.thinking,
        )  # fmt: skip
        prepared = prepare(request, self.tokenizer, bounds)
        ends = end_ids(request, self.tokenizer, self.denoiser.end_ids)
        opens, controls = Opening(plan.policy, ends), controls_of(denoiser)
        given = (prepared.blocks, prepared.tokens, prepared.editable, bounds.mask_id)
        canvas = RequestCanvas(*given, controls=controls, opens=opens)
        if plan.kv is not None and plan.kv.inner:
            inner, refresh = plan.kv.inner, plan.kv.refresh
            canvas = PartedCanvas(*given, controls=controls, opens=opens, inner=inner, refresh=refresh)
        require(plan, denoiser, canvas, self.config.cache)
        text = TextStream(self.tokenizer, prepared.prompt, request.stop, ends, lead=prepared.lead)
        seed = chosen(self.config.seed if request.seed is None else request.seed)
        live = Live(
            next(self._numbers), request, plan, canvas, text, ends, seed, drafts, prepared.blocks.given,
            denoiser.exact, (*prepared.notes, *self.meta.cautions(prepared.blocks.block)),
            guide=self._guide(request, prepared, ends), tools=tools,
        )  # fmt: skip
        if not self._fits(live.lanes, canvas.blocks.length):
            raise DecodeError(
                f"request: {live.lanes} x {canvas.blocks.length} positions exceed what decode.kv_bytes="
                f"{self.config.kv_bytes} holds of this model's state; shorten it or raise the limit"
            )
        self.waiting.append(live)
        return live.number

    def _guide(self, request: Request, prepared: Prepared, ends: frozenset[int]) -> Guide | None:
        if request.grammar is None:
            return None
        return Guide.of(request.grammar, self.tokenizer, self.denoiser.vocab_size, ends, prepared.blocks.new)

    def _fits(self, lanes: int, positions: int) -> bool:
        return lanes * self.denoiser.state_bytes(positions) <= self.config.kv_bytes

    def step(self) -> list[Event]:
        """Admit what fits, run one forward over the windows whose turn it is, and report what happened."""
        self._admit()
        turn, events = self._turn(), list[Event]()
        logits = self._forward({live: own for live, own in turn.items() if not (_searches(live) and own.opened)})

        for live, window in turn.items():
            live.counters.fused += self.config.cache and bool(window.opened) and window.final_on_entry > 0
            kept, found = self._looked(live, window, logits.get(live))
            self._commit(live, window, kept)
            if kept and window.start < live.begins:
                self.sharing.hand(live)
            events += found

        # only now may slots move: what the forward wrote is kept by every row's commit above
        for live in [each for each in turn if each.finish is not None]:
            self._leave(live)
            events.append(finished(live))
        return events

    def _looked(self, live: Live, window: Window, logits: list[Tensor] | None) -> tuple[int, list[Event]]:
        if logits is not None:
            return advance(live, window, logits)
        self.forwards += 1
        return searched(self.denoiser, self.store if self.config.cache else None, live, window)

    def _admit(self) -> None:
        while self.waiting and self._has_room(self.waiting[0]):
            live = self.waiting.popleft()
            if live.plan.kv is not None:
                length = live.canvas.blocks.length
                live.kept = live.kept or [KeptKeys(live.plan.kv, length) for _ in range(live.lanes)]
            elif self.config.cache:
                everyone = [each for each in (*self.running, live) if not each.kept]
                longest = max(each.canvas.blocks.length for each in everyone)
                self.store.reserve(sum(each.lanes for each in everyone), longest, self._fits)
                self.sharing.make_room(live)
                live.slots = [self.store.add() for _ in range(live.lanes)]
                self.sharing.take(live)
            self.running.append(live)

    def _has_room(self, live: Live) -> bool:
        everyone = [*self.running, live]
        lanes = sum(each.lanes for each in everyone)
        windows = sum(each.lanes * each.widest for each in everyone)
        fits = self._fits(lanes, max(each.canvas.blocks.length for each in everyone))
        return not self.running or (
            fits and windows <= self.config.step_tokens and len(everyone) <= self.config.requests
        )

    def _turn(self) -> dict[Live, Window]:
        windows = {live: self._window(live, self.config.step_tokens) for live in self.running}
        filling = [live for live, window in windows.items() if _is_prefill(live, window)]
        decoding = {live: window for live, window in windows.items() if live not in filling}
        self._prefilled = bool(filling) and not (self._prefilled and decoding)
        if not self._prefilled:
            return decoding
        room = min(self.config.step_tokens, self.config.prefill_tokens if decoding else UNBOUNDED)
        return self._within_budget(filling, room)

    def _window(self, live: Live, room: int) -> Window:
        if not self.config.cache:
            return live.canvas.window(UNBOUNDED, True)
        return live.canvas.window(room // live.lanes, self.config.fuse and not (_searches(live) or live.kept))

    def _within_budget(self, filling: Sequence[Live], room: int) -> dict[Live, Window]:
        chosen: dict[Live, Window] = {}
        for live in filling:
            self.sharing.take(live)
            window = self._window(live, room)
            seats = live.lanes + sum(each.lanes for each in chosen)
            widest = max(window.size, *(each.size for each in chosen.values())) if chosen else window.size
            if not chosen or seats * widest <= room and not self.sharing.soon(live, window, chosen):
                chosen[live] = window
        return chosen

    @torch.no_grad()
    def _forward(self, turn: dict[Live, Window]) -> dict[Live, list[Tensor]]:
        seats = [
            Seat(live, lane, row)
            for live, window in turn.items()
            for lane, row in enumerate(rows(live, window, self._look_back))
        ]
        logits = {live: [NOTHING] * live.lanes for live in turn}
        store = self.store if self.config.cache else None
        for run in parties(seats, self.config.cache):
            self.forwards += 1
            for seat, scores in zip(run, seated(self.denoiser, store, run), strict=True):
                first, stop = seat.row.start, seat.row.start + seat.row.tokens.shape[0]
                seat.live.counters.positions += max(0, stop - max(first, seat.live.begins))
                logits[seat.live][seat.lane] = scores
            for live in {seat.live for seat in run}:
                live.counters.forwards += 1
        return logits

    def _commit(self, live: Live, window: Window, positions: int) -> None:
        if live.kept and window.opened and not live.kept[0].rule.keeps_looks:
            return
        if self.config.cache and positions:
            live.canvas.committed += positions
            for slot in live.slots:
                self.store.commit(slot, positions)
            for keys in live.kept:
                keys.commit(positions, live.canvas.committed >= live.begins)

    def _leave(self, live: Live) -> None:
        self.running.remove(live)
        self.sharing.leave(live)
        while live.slots:
            moved = self.store.release(hole := live.slots.pop())
            for other in self.running:
                other.slots = [hole if slot == moved else slot for slot in other.slots]
            live.slots = [hole if slot == moved else slot for slot in live.slots]

    def cancel(self, number: int) -> Result | None:
        """End a request at once and free its slots; its result so far, or None if it is not here."""
        for live in [*self.running, *self.waiting]:
            if live.number == number:
                self._remove(live)
                return result(live)
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
            live.canvas.committed = live.canvas.committed if live.kept else 0
            self.waiting.appendleft(live)

    def generate(self, request: Request) -> Result:
        """Decode one request to its end, in an engine that has no other: Driver serves several."""
        if self.pending:
            raise ValueError(f"engine: generate beside {self.pending} pending requests; use Driver(engine)")
        return Driver(self).generate(request)


def _searches(live: Live) -> bool:
    return isinstance(live.plan.policy, Search)


def _is_prefill(live: Live, window: Window) -> bool:
    return window.size > live.widest
