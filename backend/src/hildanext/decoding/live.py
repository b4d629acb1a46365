# One request inside the engine: canvas, plan, text and counters, from its first forward to its result.
# Entry points: Live (rows, advance, result).
# Everything mutable about a request is here; the engine only decides who takes part in which forward.
"""A request at work."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.canvas import RequestCanvas, Step, Window
from hildanext.decoding.events import Commit, Done, Draft, DraftToken, Event, TokenState
from hildanext.decoding.forward import ForwardRow
from hildanext.decoding.modes import ResolvedMode
from hildanext.decoding.policy import masked
from hildanext.decoding.randomness import CHOICE, SAMPLE, uniform
from hildanext.decoding.request import FinishReason, Metrics, Request, Result
from hildanext.decoding.statistics import guided, statistics
from hildanext.decoding.text import TextStream


@dataclass
class Counters:
    """What is measured while a request runs; times are time.monotonic() seconds."""

    started: float = field(default_factory=time.monotonic)
    first_block: float = 0.0
    forwards: int = 0
    mask_share: list[float] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)
    applied: list[int] = field(default_factory=list)
    reverted: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Live:
    """A request with its state. slots: rows of the store, two with guidance, none while it waits; shown: position up
    to which text was emitted; ends: token ids that end the text."""

    number: int
    request: Request
    plan: ResolvedMode
    canvas: RequestCanvas
    text: TextStream
    ends: frozenset[int]
    seed: int
    drafts: bool
    shown: int
    exact: bool = True
    notes: tuple[str, ...] = ()
    slots: list[int] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    finish: FinishReason | None = None
    emitted: list[int] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)

    @property
    def lanes(self) -> int:
        """Sequences the request needs per forward: two with guidance."""
        return 2 if self.plan.sampling.cfg_scale else 1

    def rows(self, window: Window, look_back: int) -> list[ForwardRow]:
        """The rows of one forward, `look_back` committed tokens included; the second one, with guidance, has its given
        tokens masked."""
        canvas, start = self.canvas, max(0, window.start - look_back)
        tokens = canvas.tokens[start : window.stop]
        select = torch.zeros(len(tokens), dtype=torch.bool)
        if window.active:
            select[window.active.start - start :] = self.plan.policy.looked_at(canvas.canvas())
        hidden = torch.where(canvas.editable[start : window.stop], tokens, canvas.mask_id)
        slots = self.slots or [0] * self.lanes
        sequences = (tokens, hidden)[: self.lanes]
        return [ForwardRow(slots[lane], start, own, select, canvas.blocks.block) for lane, own in enumerate(sequences)]

    def advance(self, logits: list[Tensor]) -> tuple[Step, list[Event]]:
        """One step of the active block from the logits [n, V] of each lane; the block is closed when it is final."""
        policy = self.plan.policy
        canvas = self.canvas.canvas(self._uniform(CHOICE) if policy.random else None)
        looked = policy.looked_at(canvas)
        stats = self._stats(logits, canvas, looked)
        self.canvas.history += ((stats.best, stats.probability),) if policy.remembers else ()
        update = policy.step(stats, canvas)
        forced = self.canvas.step + 1 >= policy.forwards(self.canvas.masks)
        update = _completed(update, stats, canvas) if forced else update
        step = self.canvas.apply(update, policy.revises, policy.post_steps, forced)
        self._count(stats, canvas, looked, step)
        events = self._drafts(stats, canvas, update)
        if step.final:
            self.canvas.close()
            events += self._emit()
        return step, events

    def _uniform(self, purpose: int) -> Tensor:
        span = self.canvas.active()
        positions = torch.arange(span.start, span.stop)
        return uniform(self.seed, self.request.sample, positions, self.canvas.step, purpose)

    def _stats(self, logits: list[Tensor], canvas: Canvas, looked: Tensor) -> Stats:
        sampling = self.plan.sampling
        scores = guided(logits[0], logits[1], sampling.cfg_scale) if len(logits) > 1 else logits[0]
        draws = self._uniform(SAMPLE)[looked].to(scores.device) if sampling.temperature else None
        bias = self.plan.policy.bias(canvas)
        bias = bias.at(looked) if bias is not None else None
        found = statistics(scores, canvas.mask_id, sampling, self.plan.policy.needs, draws, bias)
        return Stats(
            _spread(found.best, looked, canvas.tokens),
            _spread(found.probability, looked, torch.zeros(len(looked))),
            None if found.entropy is None else _spread(found.entropy, looked, torch.zeros(len(looked))),
            None if found.second is None else _spread(found.second, looked, torch.zeros(len(looked))),
        )

    def _count(self, stats: Stats, canvas: Canvas, looked: Tensor, step: Step) -> None:
        differs = looked & ~masked(canvas) & (stats.best != canvas.tokens)
        counters = self.counters
        counters.mask_share.append(step.mask_share)
        counters.proposed.append(int(differs.sum()) if self.plan.policy.revises else 0)
        counters.applied.append(step.applied)
        counters.reverted.append(step.reverted)

    def _drafts(self, stats: Stats, before: Canvas, update: Update) -> list[Event]:
        if not (self.drafts or self.request.trace):
            return []
        start, step = self.canvas.active().start, len(self.counters.mask_share)
        tokens = tuple(
            DraftToken(
                start + i, int(token), self._piece(int(token)), float(stats.probability[i]), _state(i, before, update)
            )
            for i, token in enumerate(update.tokens)
        )
        if self.request.trace:
            self.trace.append(
                {"request": self.number, "step": step, "start": start, "tokens": [vars(token) for token in tokens]}
            )
        return [Draft(self.number, step, tokens)] if self.drafts else []

    def _piece(self, token: int) -> str:
        return "" if token == self.canvas.mask_id else self.text.piece(token)

    def _emit(self) -> list[Event]:
        limit = self.canvas.blocks.limit
        stop = min(self.canvas.final, limit)
        ids = [int(token) for token in self.canvas.tokens[self.shown : stop]]
        self.shown = stop
        place = next((index for index, token in enumerate(ids) if token in self.ends), None)
        last = place is not None or stop == limit
        ids = ids if place is None else ids[: place + 1]
        delta = self.text.push(ids, last)
        self.finish = "stop" if self.text.stopped else "eos" if place is not None else "length" if last else None
        kept = tuple(self.text.ids[len(self.emitted) : self.text.settled])
        self.emitted.extend(kept)
        self.counters.first_block = self.counters.first_block or time.monotonic()
        return [Commit(self.number, delta, kept)] if delta or kept else []

    def done(self) -> Done:
        """The last event of the request."""
        return Done(self.number, self.result())

    def result(self) -> Result:
        """The result so far; finish reason 'cancelled' where the request was not finished."""
        counters, tokens = self.counters, len(self.text.ids)
        seconds = time.monotonic() - counters.started
        metrics = Metrics(
            counters.forwards, tokens, len(self.text.prompt), len(counters.mask_share),
            tokens / max(1, counters.forwards), seconds, max(0.0, counters.first_block - counters.started),
            tokens / seconds if seconds > 0 else 0.0, peak_bytes(), self.plan.name, self.canvas.blocks.block,
        )  # fmt: skip
        series = (counters.mask_share, counters.proposed, counters.applied, counters.reverted)
        names = ("mask_share", "edits_proposed", "edits_applied", "edits_reverted")
        metrics = replace(metrics, **{name: tuple(values) for name, values in zip(names, series, strict=True)})  # type: ignore[arg-type]
        reason: FinishReason = self.finish or "cancelled"
        return Result(
            self.text.text, tuple(self.text.ids), reason, metrics, exact=self.exact, preset=self.plan.preset,
            trace=tuple(self.trace), notes=self.notes,
        )  # fmt: skip


def _spread(values: Tensor, looked: Tensor, otherwise: Tensor) -> Tensor:
    full = otherwise.clone()
    full[looked] = values.to(full)
    return full


def _completed(update: Update, stats: Stats, canvas: Canvas) -> Update:
    rest = update.tokens == canvas.mask_id
    tokens = torch.where(rest, stats.best, update.tokens)
    return Update(tokens, update.unmasked | (rest & masked(canvas)), update.edited)


def _state(index: int, before: Canvas, update: Update) -> TokenState:
    if not before.editable[index]:
        return "given"
    if update.tokens[index] == before.mask_id:
        return "mask"
    return "new" if update.unmasked[index] else "edited" if update.edited[index] else "kept"


def peak_bytes() -> int:
    """Peak memory of the process: device bytes where CUDA is used, else resident set size (0: unknown)."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
