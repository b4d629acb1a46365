# One forward of one request: what goes in, and what its logits do to the opened blocks, its text and its record.
# Entry points: rows (the sequences of a forward), advance (one step from their logits), result, finished.
# Every opened block gets statistics and an update of its own from the same logits; state.py holds what changes.
"""A step of a request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hildanext.core.mixture import Mixture
from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.carrying import carried_on, mixture_of, observed
from hildanext.decoding.events import Commit, Done, Draft, DraftToken, Event, TokenState
from hildanext.decoding.forward import ForwardRow
from hildanext.decoding.kept_keys import told
from hildanext.decoding.policy import masked
from hildanext.decoding.randomness import CHOICE, SAMPLE, uniform
from hildanext.decoding.record import Record
from hildanext.decoding.request import FinishReason, Metrics, Result, TokenRecord, ToolCall
from hildanext.decoding.sharing import sequences
from hildanext.decoding.state import Live, Look, OpenBlock, Window
from hildanext.decoding.statistics import guided, statistics
from hildanext.models.hardware import peak_memory


def rows(live: Live, window: Window, look_back: int) -> list[ForwardRow]:
    """The rows of one forward, `look_back` committed tokens included; the second one, with guidance, has its given
    tokens masked."""
    canvas, start, policy = live.canvas, max(0, window.start - look_back), live.plan.policy
    for keys in live.kept:
        keys.turn(window.opened[0].span.start if window.opened else None)
    if len(window.opened) == 1 and (window.opened[0].span.start, window.opened[0].span.stop) == (start, window.stop):
        select = policy.looked_at(canvas.canvas(window.opened[0]))
    else:
        select = torch.zeros(window.stop - start, dtype=torch.bool)
        for block in window.opened:
            looked = policy.looked_at(canvas.canvas(block))
            select[block.span.start - start : block.span.stop - start] = looked
    slots = live.slots or [0] * live.lanes
    lanes = zip(slots, sequences(live, start, window.stop), strict=True)
    mixture = _mixture(live, window, start)
    return [ForwardRow(slot, start, own, select, canvas.blocks.block, mixture) for slot, own in lanes]


def _mixture(live: Live, window: Window, start: int) -> Mixture | None:
    carry = live.plan.carry
    if carry is None:
        return None
    held = [(block.held, block.span.start - start) for block in window.opened]
    parts = [mixture_of(carry, one, live.canvas.mask_id, at) for one, at in held if one is not None]
    return Mixture.joined(parts) if parts else None


def advance(live: Live, window: Window, logits: Sequence[Tensor]) -> tuple[int, list[Event]]:
    """One step of every opened block from the logits [n, V] of each lane. Returns how many of the window's positions
    may be kept in the store, counted from its start, and what happened."""
    if not window.opened:
        return window.final_on_entry, []
    policy, canvas, rest = live.plan.policy, live.canvas, list(logits)
    looks, drafted, proposed = [], list[DraftToken](), 0
    canvas.judge(policy)

    for block in window.opened:
        seen = canvas.canvas(block, _uniform(live, block, CHOICE) if policy.random else None)
        looked = policy.looked_at(seen)
        count = sum(looked.tolist())
        own, rest = rest, [one[count:] for one in rest] if len(window.opened) > 1 else []
        own = [one[:count] for one in own] if rest else own
        scores = guided(own[0], own[1], live.plan.sampling.cfg_scale) if len(own) > 1 else own[0]
        if canvas.controls is not None and not policy.acts:
            scores = scores.index_fill(1, torch.tensor(canvas.controls[:2], device=scores.device), -torch.inf)
        carry = live.plan.carry
        found = observed(carry, seen, looked, scores) if carry else None
        raw = scores.float().clone() if live.record else scores
        scores = live.guide.masked(scores, looked, seen) if live.guide else scores
        stats = _stats(live, block, seen, looked, scores)
        best = stats.best.tolist()
        block.stable = _agreement(seen, best)
        block.history += ((stats.best, stats.probability),) if policy.remembers else ()
        update = live.guide.update(stats, seen) if live.guide else policy.step(stats, seen)
        forced = canvas.forced(block, policy)
        update = _completed(update, stats, seen) if forced else update
        if live.record:
            step = len(live.counters.mask_share) + 1
            _noted(live.record, block.span.start, (seen, looked, raw), update, step)
        looks.append(canvas.look(block, update, policy, forced))
        if carry is not None and found is not None:
            moved = update.moved is not None
            block.held = None if moved else carried_on(carry, block.held, seen, found, (update.tokens, stats))
        # counted behind the update: the rewrites that the model still proposes
        proposed += _rewrites(seen, looked, best) if policy.revises else 0
        drafted += _drafted(live, block, seen, stats, update)

    _count(live, window, looks, proposed)
    events = _draft(live, window, drafted)
    before, kept = canvas.final, canvas.close(looks)
    if canvas.final > before:
        events += _emit(live)
    return window.final_on_entry + kept, events


def written(live: Live, window: Window, update: Update) -> tuple[int, list[Event]]:
    """The final tokens of the one opened block, whoever chose them: what `advance` returns."""
    (block,), canvas = window.opened, live.canvas
    seen = canvas.canvas(block)
    look = canvas.look(block, update, live.plan.policy, True)
    _count(live, window, [look], 0)
    unknown = Stats(update.tokens, torch.zeros(len(update.tokens)))
    events = _draft(live, window, _drafted(live, block, seen, unknown, update))
    kept = canvas.close([look])
    return window.final_on_entry + kept, events + _emit(live)


def _noted(record: Record, start: int, saw: tuple[Canvas, Tensor, Tensor], update: Update, step: int) -> None:
    seen, looked, raw = saw
    written = update.tokens
    if update.moved is not None:  # noted where they were read, then moved
        written, here = seen.tokens.clone(), update.moved >= 0
        written[update.moved[here]] = update.tokens[here]
    record.write(start, seen, looked, written, raw, step)
    if update.moved is not None:
        record.shift(start, update.moved)


def _uniform(live: Live, block: OpenBlock, purpose: int) -> Tensor:
    positions = torch.arange(block.span.start, block.span.stop)
    return uniform(live.seed, live.request.sample, positions, block.looks, purpose)


def _stats(live: Live, block: OpenBlock, canvas: Canvas, looked: Tensor, scores: Tensor) -> Stats:
    policy, sampling = live.plan.policy, live.plan.sampling
    draws = None if sampling.greedy else _uniform(live, block, SAMPLE)[looked].to(scores.device)
    bias = policy.bias(canvas)
    bias = bias.at(looked) if bias is not None else None
    found = statistics(scores, canvas.mask_id, sampling, policy.needs, draws, bias)
    return Stats(
        _spread(found.best, looked, canvas.tokens),
        _spread(found.probability, looked),
        None if found.entropy is None else _spread(found.entropy, looked),
        None if found.second is None else _spread(found.second, looked),
        *(None if one is None else _spread_rows(one, looked) for one in (found.ranked, found.ranks)),
    )


def _spread(values: Tensor, looked: Tensor, otherwise: Tensor | None = None) -> Tensor:
    own = values.to(looked.device)
    if own.shape == looked.shape:
        return own
    return torch.masked_scatter(own.new_zeros(looked.shape[0]) if otherwise is None else otherwise, looked, own)


def _spread_rows(values: Tensor, looked: Tensor) -> Tensor:
    own = values.to(looked.device)
    made = own.new_zeros(looked.shape[0], own.shape[1])
    made[looked] = own
    return made


def _agreement(canvas: Canvas, best: Sequence[int]) -> float:
    places = zip(canvas.editable.tolist(), canvas.tokens.tolist(), best, strict=True)
    agreed = [token == pick for editable, token, pick in places if editable and token != canvas.mask_id]
    return sum(agreed) / len(agreed) if agreed else 1.0


def _rewrites(canvas: Canvas, looked: Tensor, best: Sequence[int]) -> int:
    places = zip(looked.tolist(), canvas.tokens.tolist(), best, strict=True)
    return sum(seen and pick != token != canvas.mask_id for seen, token, pick in places)


def _completed(update: Update, stats: Stats, canvas: Canvas) -> Update:
    rest = update.tokens == canvas.mask_id
    tokens = torch.where(rest, stats.best, update.tokens)
    return Update(tokens, update.unmasked | (rest & masked(canvas)), update.edited)


def _count(live: Live, window: Window, looks: Sequence[Look], proposed: int) -> None:
    spans, canvas, counters = [block.span for block in window.opened], live.canvas, live.counters
    masks = sum(canvas.tokens[span.start : span.stop].tolist().count(canvas.mask_id) for span in spans)
    counters.mask_share.append(_share(masks, spans[-1].stop - spans[0].start))
    counters.proposed.append(proposed)
    counters.applied.append(sum(look.applied for look in looks))
    counters.reverted.append(sum(look.reverted for look in looks))


@cache
def _share(count: int, of: int) -> float:
    return float(torch.tensor(float(count)) / of)


def _drafted(live: Live, block: OpenBlock, before: Canvas, stats: Stats, update: Update) -> list[DraftToken]:
    if not (live.drafts or live.request.trace):
        return []
    tokens = []
    for index, token in enumerate(update.tokens.tolist()):
        text = "" if token == before.mask_id else live.text.piece(token)
        state, source = _state(index, before, update), index if update.moved is None else int(update.moved[index])
        sure = float(stats.probability[source]) if source >= 0 else 0.0
        tokens.append(DraftToken(block.span.start + index, token, text, sure, state))
    return tokens


def _state(index: int, before: Canvas, update: Update) -> TokenState:
    if not before.editable[index]:
        return "given"
    if update.tokens[index] == before.mask_id:
        return "mask"
    return "new" if update.unmasked[index] else "edited" if update.edited[index] else "kept"


def _draft(live: Live, window: Window, drafted: list[DraftToken]) -> list[Event]:
    start, step = window.opened[0].span.start, len(live.counters.mask_share)
    if live.request.trace:
        tokens = [_traced(live, token) for token in drafted]
        live.trace.append({"request": live.number, "step": step, "start": start, "tokens": tokens})
    return [Draft(live.number, step, tuple(drafted))] if live.drafts else []


def _traced(live: Live, token: DraftToken) -> dict[str, Any]:
    known = live.record is not None and token.state != "mask"
    return vars(token) | (live.record.traced(token.pos) if live.record and known else {})


def _emit(live: Live) -> list[Event]:
    limit = live.canvas.blocks.limit
    stop = min(live.canvas.final, limit)
    ids: list[int] = live.canvas.tokens[live.shown : stop].tolist()
    live.shown = stop
    place = next((index for index, token in enumerate(ids) if token in live.ends), None)
    last = place is not None or stop == limit
    delta = live.text.push(ids if place is None else ids[: place + 1], last)
    live.finish = "stop" if live.text.stopped else "eos" if place is not None else "length" if last else None
    kept = tuple(live.text.ids[len(live.emitted) : live.text.settled])
    live.emitted.extend(kept)
    live.counters.first_block = live.counters.first_block or time.monotonic()
    first = live.canvas.blocks.given + len(live.emitted) - len(kept)
    told = live.tools.push(delta, live.finish is not None) if live.tools else None
    return [Commit(live.number, delta, kept, record(live, first, kept), told)] if delta or kept or told else []


def record(live: Live, first: int, ids: Sequence[int]) -> tuple[TokenRecord, ...] | None:
    """The records of `ids`, which stand from position `first` on, where they were asked for."""
    return tuple(live.record.tokens(first, ids, live.text)) if live.record else None


def finished(live: Live) -> Done:
    """The last event of a request."""
    return Done(live.number, result(live))


def result(live: Live) -> Result:
    """The result so far; finish reason 'cancelled' where the request was not finished."""
    counters, kept, given = live.counters, live.text.ids, live.canvas.blocks.given
    # of a text with gaps only what was filled in is generated
    tokens = int(live.canvas.editable[given : given + len(kept)].sum())
    seconds = time.monotonic() - counters.started
    metrics = Metrics(
        counters.forwards, tokens, int((~live.canvas.editable).sum()), len(counters.mask_share),
        tokens / max(1, counters.forwards), seconds, max(0.0, counters.first_block - counters.started),
        tokens / seconds if seconds > 0 else 0.0, peak_memory(), live.plan.name, live.canvas.blocks.block,
        tuple(counters.mask_share), tuple(counters.proposed), tuple(counters.applied), tuple(counters.reverted),
        counters.fused, counters.positions, tokens / max(1, counters.forwards + counters.fused),
        counters.positions / max(1, counters.forwards), counters.cached, live.guide.counts if live.guide else None,
    )  # fmt: skip
    reason: FinishReason = live.finish or "cancelled"
    reason = "length" if live.guide and live.guide.broken and reason == "eos" else reason
    calls = tuple(ToolCall(*call) for call in live.tools.calls) if live.tools else ()
    notes = (*live.notes, *(live.guide.notes if live.guide else ()), *told(live.kept))
    return Result(
        live.text.text, tuple(kept), reason, metrics, exact=live.exact and not told(live.kept), preset=live.plan.preset,
        trace=tuple(live.trace), notes=notes, seed=live.seed, record=record(live, given, kept),
        tool_calls=calls, said=live.tools.content if live.tools else None,
    )  # fmt: skip
