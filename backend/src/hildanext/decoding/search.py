# Decoding that looks at several candidates of a block at once: what a searching policy is, and how the engine runs one.
# Entry points: Search (base of such policies), searched (one forward of a search), Fork (the cache of its forward).
# Candidates read the committed keys of their request and keep their own to themselves, so nothing is copied or written
# until the block's tokens are final; then they are committed as every final block is, by a forward of their own.
# Letters: m candidates, Q positions of a block, q of a row of the forward, V vocabulary.
"""Search within a block."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hildanext.core.head import exclude_token
from hildanext.core.types import Canvas, Denoiser, Stats, Update
from hildanext.decoding.events import Event
from hildanext.decoding.forward import ForwardRow, visibility
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked, quota
from hildanext.decoding.randomness import uniform
from hildanext.decoding.sharing import sequences
from hildanext.decoding.state import Live, OpenBlock, Window
from hildanext.decoding.statistics import guided
from hildanext.decoding.step import written
from hildanext.decoding.store import KeysValues, StateStore
from hildanext.errors import DecodeError

PURPOSE = 16
Draws = Callable[[int, int], Tensor]
"""(step, number) -> uniforms [Q] in [0, 1)."""
Course = Generator[Tensor, Tensor, Tensor]
"""Gives candidates [m, Q], is sent their logits [m, Q, V] without [MASK], returns the block's tokens [Q]."""


class Search(BlockPolicy):
    """A policy that asks about candidates instead of deciding from one forward. Asked for a single step, it is the
    quota of static_quota."""

    steps: int = Field(0, ge=0, description="forwards a block's masks are spread over, a count; 0: one per mask")

    @model_validator(mode="after")
    def _alone(self) -> Self:
        if self.window_blocks > 1:
            raise ValueError("window_blocks: a search is within one block; give 1")
        return self

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The quota of this step, best first."""
        count = quota(canvas.masks, self.steps or max(1, canvas.masks), canvas.step)
        return fill(stats, canvas, best_first(stats.probability, masked(canvas), least(canvas, max(1, count))))

    def search(self, canvas: Canvas, draws: Draws) -> Course:
        """The course of one block."""
        raise ValueError(f"policy {type(self).__name__} defines no search")


@dataclass(frozen=True)
class Begun:
    """A block's search: its course, and the candidates [m, Q] it asks about next."""

    course: Course
    asked: Tensor


@dataclass(frozen=True)
class Fork:
    """A cache for candidates of one slot: they see its first `start` positions and their own, and write nothing."""

    store: StateStore
    slot: int
    start: int

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The positions they share."""
        return self.start

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """key, value [m, H, q, D] of the candidates -> [m, H, start + q, D]."""
        if not self.start:
            return key, value
        held = self.store.layer(layer_idx, KeysValues).held
        past = (one[self.slot : self.slot + 1, :, : self.start].expand(len(key), -1, -1, -1) for one in held)
        keys, values = (torch.cat([old, new], dim=2) for old, new in zip(past, (key, value), strict=True))
        return keys, values

    def state(self, layer: int, kind: type[Any]) -> Any:
        """DecodeError: a layer that keeps something else."""
        raise DecodeError(
            "policy: it searches over keys and values, and this model keeps another state; set decode.cache=false"
        )


def searched(denoiser: Denoiser, store: StateStore | None, live: Live, window: Window) -> tuple[int, list[Event]]:
    """One forward of the search of a request's opened block: what step.advance returns."""
    (block,), policy = window.opened, live.plan.policy
    if not isinstance(policy, Search):
        raise ValueError("searched: the policy does not search")
    begun = block.memory or _begun(policy, live, block)
    logits = _logits(denoiser, store, live, block, begun.asked)
    live.counters.forwards += 1
    live.counters.positions += begun.asked.numel()
    try:
        block.memory = Begun(begun.course, begun.course.send(logits))
    except StopIteration as end:
        tokens: Tensor = end.value
        hidden = masked(live.canvas.canvas(block))
        return written(live, window, Update(tokens, hidden, torch.zeros_like(hidden)))
    return 0, []


def _begun(policy: Search, live: Live, block: OpenBlock) -> Begun:
    canvas, positions = live.canvas.canvas(block), torch.arange(block.span.start, block.span.stop)
    held = Canvas(canvas.tokens.clone(), canvas.editable, canvas.mask_id, 0, canvas.masks)
    course = policy.search(
        held, lambda step, number: uniform(live.seed, live.request.sample, positions, step, PURPOSE + number)
    )
    return Begun(course, next(course))


@torch.no_grad()
def _logits(denoiser: Denoiser, store: StateStore | None, live: Live, block: OpenBlock, asked: Tensor) -> Tensor:
    start, stop, look_back = block.span.start, block.span.stop, 0 if denoiser.shift == "none" else 1
    first = 0 if store is None else max(0, start - look_back)
    select, lanes = torch.zeros(len(asked), stop - first, dtype=torch.bool), list[Tensor]()
    select[:, start - first :] = True
    for lane, own in enumerate(sequences(live, first, stop)):
        tokens = own.expand(len(asked), -1).clone()
        editable = live.canvas.editable[start:stop]
        tokens[:, start - first :] = torch.where(editable, asked, own[start - first :])
        rows = [ForwardRow(0, first, one, one == one, live.canvas.blocks.block) for one in tokens]
        positions = torch.arange(first, stop).expand(len(asked), -1)
        cache = None if store is None else Fork(store, live.slots[lane], first)
        moved = [one.to(denoiser.device) for one in (tokens, positions, visibility(rows, positions, stop), select)]
        lanes.append(denoiser(moved[0], moved[1], moved[2], cache=cache, select=moved[3]))
    scores = guided(lanes[0], lanes[1], live.plan.sampling.cfg_scale) if len(lanes) > 1 else lanes[0]
    scores = exclude_token(scores.float(), denoiser.mask_id)
    if live.canvas.controls is not None:
        scores[:, list(live.canvas.controls[:2])] = -torch.inf
    return scores.view(len(asked), stop - start, -1).cpu()
