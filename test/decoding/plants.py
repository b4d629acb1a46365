# Realistic errors of a decoder, each planted into the package by a monkeypatch.
# Entry points: every public function; it takes pytest's monkeypatch, which takes the error back.
# test_planted_errors says which check must notice which.
"""Errors to plant."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from decoding import test_policies, test_statistics

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding import forward, statistics, step
from hildanext.decoding import modes as resolution
from hildanext.decoding.blocks import Blocks
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.policies import factor, hierarchy, static_quota, threshold_edit
from hildanext.decoding.policies.credit import Credit
from hildanext.decoding.policies.threshold_edit import ThresholdEdit
from hildanext.decoding.policy import masked
from hildanext.decoding.randomness import uniform as drawn
from hildanext.decoding.state import RequestCanvas, Window
from hildanext.decoding.store import KeysValues, StateStore
from hildanext.decoding.text import TextStream
from hildanext.models.denoiser import HFDenoiser

LOOK, CLOSE, WINDOW, LOGITS = RequestCanvas.look, RequestCanvas.close, RequestCanvas.window, HFDenoiser._logits
EMIT, UNIFORM, RELEASE = step._emit, step._uniform, StateStore.release
CHUNK, PREPARED, STEP = statistics._chunk, statistics._prepared, ThresholdEdit.step
VISIBILITY, CANVAS = forward.visibility, RequestCanvas.canvas


def keys_of_the_changing_forward(patch: Any) -> None:
    def close(self: Any, looks: Any) -> int:
        start = self.final
        CLOSE(self, looks)
        return int(self.final - start)

    patch.setattr(RequestCanvas, "close", close)


def positions_of_the_window(patch: Any) -> None:
    def restarted(self: Any, tokens: Any, positions: Any, *rest: Any, **named: Any) -> Any:
        return LOGITS(self, tokens, positions - positions[:, :1], *rest, **named)

    patch.setattr(HFDenoiser, "_logits", restarted)


def block_size_of_the_first_row(patch: Any) -> None:
    patch.setattr(forward, "worth_packing", lambda *_: False)
    patch.setattr(
        forward,
        "visibility",
        lambda rows, *rest: VISIBILITY([replace(row, block=rows[0].block) for row in rows], *rest),
    )


def randomness_of_the_forward_count(patch: Any) -> None:
    def uniform(live: Any, block: Any, purpose: int) -> Any:
        return drawn(live.seed, 0, torch.arange(block.span.start, block.span.stop), live.counters.forwards, purpose)

    patch.setattr(step, "_uniform", uniform)


def randomness_without_the_step(patch: Any) -> None:
    patch.setattr(step, "_uniform", lambda live, block, purpose: UNIFORM(live, replace(block, looks=0), purpose))


def randomness_of_the_queue(patch: Any) -> None:
    def numbered(live: Any, block: Any, purpose: int) -> Any:
        return (UNIFORM(live, block, purpose) + 0.37 * live.number) % 1.0

    patch.setattr(step, "_uniform", numbered)


def steps_forgotten_by_preemption(patch: Any) -> None:
    preempt = BlockEngine.preempt

    def forgetful(self: Any, number: int) -> None:
        preempt(self, number)
        self.waiting[0].canvas.opened[0].looks = 0

    patch.setattr(BlockEngine, "preempt", forgetful)


def moved_slot_without_its_keys(patch: Any) -> None:
    patch.setattr(KeysValues, "move", lambda *_: None)


def cancel_without_release(patch: Any) -> None:
    patch.setattr(BlockEngine, "_remove", lambda self, live: self.running.remove(live))


def memory_kept_when_empty(patch: Any) -> None:
    def hoarding(self: Any, slot: int) -> int | None:
        layers, shape = dict(self.layers), (self.slots, self.capacity)
        moved = RELEASE(self, slot)
        self.layers, (self.slots, self.capacity) = layers, shape
        return moved

    patch.setattr(StateStore, "release", hoarding)


def streams_that_end_with_the_queue(patch: Any) -> None:
    def events(self: Any, numbers: Any) -> Any:
        while True:
            found = self.step()
            self.backlog = [event for event in found if event.request not in numbers]
            yield from (event for event in found if event.request in numbers)
            if not self.pending:
                return

    patch.setattr(Driver, "_events", events)


def separate_commits(patch: Any) -> None:
    def window(self: Any, budget: int, fuse: bool) -> Window:
        return WINDOW(self, budget, False)

    patch.setattr(RequestCanvas, "window", window)


def mask_left_in_the_normaliser(patch: Any) -> None:
    raw: list[Any] = []

    def prepared(logits: Any, *rest: Any) -> Any:
        raw[:] = [logits.float().clone()]
        return PREPARED(logits, *rest)

    def chunk(scores: Any, *rest: Any) -> Any:
        best, _, *others = CHUNK(scores, *rest)
        return best, raw[0].softmax(dim=1).gather(1, best.unsqueeze(1)).squeeze(1), *others

    patch.setattr(statistics, "_prepared", prepared)
    patch.setattr(statistics, "_chunk", chunk)


def thresholds_that_include_equality(patch: Any) -> None:
    def step(self: Any, stats: Stats, canvas: Canvas) -> Update:
        return STEP(self, replace(stats, probability=stats.probability + 1e-6), canvas)

    patch.setattr(ThresholdEdit, "step", step)


def ties_by_topk(patch: Any) -> None:
    surest = threshold_edit.surest
    patch.setattr(threshold_edit, "surest", lambda places, odds, count: surest(places[::-1], odds, count))


def nothing_forced(patch: Any) -> None:
    patch.setattr(threshold_edit, "surest", lambda places, odds, count: [])


def leftmost_instead_of_best(patch: Any) -> None:
    patch.setattr(threshold_edit, "surest", lambda places, odds, count: places[:count])


def remainder_last(patch: Any) -> None:
    patch.setattr(static_quota, "quota", lambda masks, steps, step: masks // steps + (step >= steps - masks % steps))
    patch.setattr(test_policies, "quota", static_quota.quota)


def one_mask_too_many(patch: Any) -> None:
    best = factor.best_first
    patch.setattr(factor, "best_first", lambda score, allowed, count: best(score, allowed, count + 1))


def every_leader(patch: Any) -> None:
    best = hierarchy.best_first
    patch.setattr(hierarchy, "best_first", lambda score, allowed, count: best(score + 1, allowed, count + 1))


def credit_at_weight_zero(patch: Any) -> None:
    bias = Credit.bias
    patch.setattr(Credit, "bias", lambda self, canvas: bias(self.model_copy(update={"alpha": 1.5}), canvas))


def everything_editable(patch: Any) -> None:
    def canvas(self: Any, *rest: Any) -> Canvas:
        found = CANVAS(self, *rest)
        return replace(found, editable=torch.ones_like(found.editable))

    patch.setattr(RequestCanvas, "canvas", canvas)


def no_edits(patch: Any) -> None:
    patch.setattr(ThresholdEdit, "_edits", lambda *_: [])


def edits_above_one_minus_tau(patch: Any) -> None:
    edits = ThresholdEdit._edits

    def lower(self: Any, *rest: Any) -> Any:
        return edits(self if self.tau_edit is None else self.model_copy(update={"tau_edit": 1 - self.tau_edit}), *rest)

    patch.setattr(ThresholdEdit, "_edits", lower)


def edits_of_hidden_positions(patch: Any) -> None:
    def step(self: Any, stats: Stats, canvas: Canvas) -> Update:
        found = STEP(self, stats, canvas)
        extra = masked(canvas) & (stats.probability > (1.0 if self.tau_edit is None else self.tau_edit))
        return Update(torch.where(extra, stats.best, found.tokens), found.unmasked | extra, found.edited)

    patch.setattr(ThresholdEdit, "step", step)


def budget_of_one_more(patch: Any) -> None:
    patch.setattr(ThresholdEdit, "post_steps", property(lambda self: self.max_post_steps + 1 if self.revises else 0))


def fixed_points_ignored(patch: Any) -> None:
    def look(self: Any, block: Any, update: Update, policy: Any, *rest: Any) -> Any:
        once = SimpleNamespace(revises=policy.revises, post_steps=min(policy.post_steps, 1))
        return LOOK(self, block, update, once, *rest)

    patch.setattr(RequestCanvas, "look", look)


def coarse_uniform_numbers(patch: Any) -> None:
    draw = statistics.draw_tokens
    patch.setattr(statistics, "draw_tokens", lambda scores, uniform: draw(scores, (uniform * 32).floor() / 32))


def certainty_of_the_likeliest(patch: Any) -> None:
    measures = statistics._measures
    patch.setattr(statistics, "_measures", lambda scores, best, top, needs: measures(scores, top, top, needs))


def certainty_behind_the_cuts(patch: Any) -> None:
    sampling = resolution._sampling
    patch.setattr(resolution, "_sampling", lambda *both: replace(sampling(*both), confidence="sampled"))


def ties_beyond_top_k(patch: Any) -> None:
    def cut(scores: Any, temperature: float, top_k: int, top_p: float) -> Any:
        least = scores.topk(top_k, dim=1).values[:, -1:]
        return (scores / temperature).masked_fill(scores < least, -math.inf)

    patch.setattr(statistics, "kept_scores", cut)


def entropy_in_bits(patch: Any) -> None:
    entropy = statistics._entropy
    patch.setattr(statistics, "_entropy", lambda *both: entropy(*both) / math.log(2))


def dreams_guidance(patch: Any) -> None:
    patch.setattr(test_statistics, "guided", lambda c, u, scale: u + scale * (c - u))


def block_after_the_end_token(patch: Any) -> None:
    def emit(live: Any) -> Any:
        ends, live.ends = live.ends, frozenset()
        events, live.ends = EMIT(live), ends
        if live.finish is None and any(token in ends for token in live.text.ids):
            live.finish = "eos"
        return events

    patch.setattr(step, "_emit", emit)


def length_rounded_to_blocks(patch: Any) -> None:
    patch.setattr(Blocks, "limit", property(lambda self: -(-(self.given + self.new) // self.block) * self.block))


def ids_of_held_text(patch: Any) -> None:
    patch.setattr(TextStream, "_within", lambda self, length: len(self.ids))
