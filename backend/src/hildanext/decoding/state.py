# Everything about a request that changes while it is decoded: tokens, opened blocks, slots, counts, text and trace.
# All of it hangs on Live; the engine's queues and the store's rows are the only other state there is in decoding/.
# Entry points: Live (a request), RequestCanvas (window, judge, look, close), OpenBlock, Opening, Look, Counters.
# A block is untouched, opened (being filled), final (tokens fixed) or committed (final, its state in the store).
"""The mutable state of a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hildanext.core.levenshtein import Controls
from hildanext.core.types import Canvas, Update
from hildanext.decoding.blocks import Blocks, Span
from hildanext.decoding.carrying import Held
from hildanext.decoding.guide import Guide
from hildanext.decoding.kept_keys import KeptKeys
from hildanext.decoding.modes import ResolvedMode
from hildanext.decoding.policy import BlockPolicy
from hildanext.decoding.record import Record
from hildanext.decoding.request import FinishReason, Request
from hildanext.decoding.text import TextStream
from hildanext.decoding.tools import ToolStream


@dataclass
class OpenBlock:
    """An opened block. masks: its [MASK] count when it was opened; before [Q]: what an edit last replaced, else -1;
    looks: forwards it has had in which it was ready; led: those with all before it final; post: those of them that
    found no mask; stable: share of visible editable tokens the last look agreed with; ready: whether it may be made to
    fill a mask; history: (best, probability) [Q] of its forwards; held: what its next forward's inputs carry; memory:
    its policy's own."""

    span: Span
    masks: int
    before: Tensor
    looks: int = 0
    led: int = 0
    post: int = 0
    stable: float = 1.0
    ready: bool = True
    history: tuple[tuple[Tensor, Tensor], ...] = ()
    held: Held | None = None
    memory: Any = None


@dataclass(frozen=True)
class Look:
    """What one forward did to one block. full: it held no mask before; done: it holds none now and need not be looked
    at again; applied, reverted: edits, counts; hard: its tokens were its inputs."""

    full: bool
    changed: bool
    done: bool
    applied: int
    reverted: int
    hard: bool = True


@dataclass(frozen=True)
class Window:
    """Positions [start, stop) of the next forward: final blocks to commit, then the opened blocks, if they fit."""

    start: int
    stop: int
    opened: tuple[OpenBlock, ...]

    @property
    def size(self) -> int:
        """Positions of the forward."""
        return self.stop - self.start

    @property
    def final_on_entry(self) -> int:
        """Leading positions whose tokens are final before the forward."""
        return (self.opened[0].span.start if self.opened else self.stop) - self.start


@dataclass(frozen=True)
class Opening:
    """When the next block is opened beside those at work: fewer than `policy.window_blocks` are, the last of them is
    filled to `policy.tau_add` and its last look agreed with a share `policy.tau_stable` of its tokens, and none of them
    holds a generated one of `ends`. Source: arXiv:2606.29215, multi-block decoding; asked anew in every step."""

    policy: BlockPolicy = field(default_factory=BlockPolicy)
    ends: frozenset[int] = frozenset()

    def __call__(self, canvas: RequestCanvas) -> bool:
        """Whether `canvas`, which has opened blocks, opens one more."""
        policy, last = self.policy, canvas.opened[-1]
        if len(canvas.opened) >= policy.window_blocks or last.stable < policy.tau_stable:
            return False
        return canvas.progress(last) >= policy.tau_add and not any(canvas.ended(self.ends))


@dataclass
class RequestCanvas:
    """tokens [length] int64 and editable [length] bool on the CPU; [0, committed) has its state in the store and
    [0, final) will not change; opened: blocks at work, by position; controls: the model's edit actions; opens: whether
    to open the next one beside them, asked once after every step."""

    blocks: Blocks
    tokens: Tensor
    editable: Tensor
    mask_id: int
    committed: int = 0
    final: int = 0
    opened: tuple[OpenBlock, ...] = ()
    controls: Controls | None = None
    opens: Callable[[RequestCanvas], bool] = Opening()

    def __post_init__(self) -> None:
        self.refill()

    def refill(self) -> None:
        """Open a block where none is or the rule asks for one more; a block without an editable position is final as it
        is."""
        if (not self.opened or self.opens(self)) and (start := self._next()) < self.blocks.length:
            span = self.span(start)
            block = self.tokens[span.start : span.stop]
            fresh = OpenBlock(span, int((block == self.mask_id).sum()), torch.full_like(block, -1))
            self.opened = (*self.opened, fresh)
        self.final = self.opened[0].span.start if self.opened else self._next()

    def _next(self) -> int:
        start = self.opened[-1].span.stop if self.opened else self.final
        while start < self.blocks.length and not self.editable[start : self.span(start).stop].any():
            start = self.span(start).stop
        return start

    def span(self, position: int) -> Span:
        """What is opened at a time: the block that holds `position`."""
        return self.blocks.span(position)

    def progress(self, block: OpenBlock) -> float:
        """Share of a block's positions that hold a token, given ones included."""
        return float((self.tokens[block.span.start : block.span.stop] != self.mask_id).float().mean())

    def ended(self, ends: frozenset[int]) -> list[bool]:
        """For each opened block, whether a generated token of it is one of `ends`."""
        spans = [slice(block.span.start, block.span.stop) for block in self.opened] if ends else []
        return [not ends.isdisjoint(self.tokens[own][self.editable[own]].tolist()) for own in spans]

    def judge(self, policy: BlockPolicy) -> None:
        """Say of every opened block whether it is ready: the first is, another where the one before is filled to
        policy.tau_semi. Before the updates of a step are written, so that all blocks are judged by the same tokens."""
        shares = [1.0, *(self.progress(block) for block in self.opened[:-1])]
        for block, share in zip(self.opened, shares, strict=False):
            block.ready = share >= policy.tau_semi

    @property
    def finished(self) -> bool:
        """Whether every block is final."""
        return self.final >= self.blocks.length

    def window(self, budget: int, fuse: bool) -> Window:
        """The next forward's positions, at most `budget` (rounded down to blocks, but room for the opened ones)."""
        pending, block = self.final - self.committed, self.blocks.block
        room = max(block, budget // block * block)
        stop = self.opened[-1].span.stop if self.opened else self.final
        if pending > room or (pending and not fuse):
            return Window(self.committed, self.committed + min(pending, room), ())
        if pending and pending + -(-(stop - self.final) // block) * block > room:
            return Window(self.committed, self.final, ())
        return Window(self.committed, stop, self.opened)

    def canvas(self, block: OpenBlock, uniform: Tensor | None = None) -> Canvas:
        """What a policy sees of an opened block."""
        span = slice(block.span.start, block.span.stop)
        return Canvas(
            self.tokens[span], self.editable[span], self.mask_id, block.looks, block.masks, uniform, block.history,
            block.ready, self.controls, block.memory,
        )  # fmt: skip

    def forced(self, block: OpenBlock, policy: BlockPolicy) -> bool:
        """Whether a block has had its forwards and must end now. They are counted only while all before it is final."""
        return block is self.opened[0] and block.led + 1 >= policy.forwards(block.masks)

    def look(self, block: OpenBlock, update: Update, policy: BlockPolicy, forced: bool = False) -> Look:
        """Write the update of one block and say what it did. The block is done when it holds no mask and is forced, is
        never revised, or has had a look and the policy's post-edit looks, which count while all before it is final.
        Source: LLaDA2.1 arXiv:2602.08676 eq. 1-3 (joint threshold); the budgets are ours."""
        tokens = self.tokens[block.span.start : block.span.stop]
        old, new, leads = tokens.tolist(), update.tokens.tolist(), block is self.opened[0]
        full, changed = self.mask_id not in old, new != old
        applied, reverted = update.edits if update.edits is not None else sum(update.edited.tolist()), 0
        block.memory = update.memory
        if update.moved is not None:
            block.before = torch.where(update.moved < 0, -1, block.before[update.moved])
        elif applied:
            reverted = int((update.edited & (update.tokens == block.before)).sum())
            block.before = torch.where(update.edited, tokens, block.before)
        if changed:
            tokens.copy_(update.tokens)
        block.looks, block.led, block.post = block.looks + block.ready, block.led + leads, block.post + (full and leads)
        settled = forced or not policy.revises or (block.led > 0 and block.post >= policy.post_steps)
        done = settled and self.mask_id not in new
        hard = block.held is None or not block.held.filled
        return Look(full, changed, done, applied, reverted, hard)

    def close(self, looks: Sequence[Look]) -> int:
        """Make the opened blocks final that are done or were found full and right, as far as all before them is final;
        `looks`: one per opened block. Opens the next; returns how many positions from the first opened one on have
        their keys from a forward in which they and all before them were final on entry."""
        start = kept = self.final
        exact, hard, closed = True, True, 0
        for block, look in zip(self.opened, looks, strict=True):
            exact, hard = exact and look.full and not look.changed, hard and look.hard
            if not (exact or look.done):
                break
            closed, self.final = closed + 1, block.span.stop
            kept = self.final if exact and hard else kept
        self.opened = self.opened[closed:]
        self.refill()
        return kept - start


@dataclass
class Counters:
    """What is measured while a request runs, one entry per step; times are time.monotonic() seconds. fused: forwards
    that also committed what was final; positions: computed from the first block that holds a generated token on;
    cached: taken from earlier requests at the start."""

    started: float = field(default_factory=time.monotonic)
    first_block: float = 0.0
    forwards: int = 0
    fused: int = 0
    positions: int = 0
    cached: int = 0
    mask_share: list[float] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)
    applied: list[int] = field(default_factory=list)
    reverted: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Live:
    """A request with its state. ends: token ids that end the text; slots: rows of the store, two with guidance, none
    while it waits; kept: keys of its own instead, where a rule is about them; shown: position up to which text was
    emitted; emitted: ids that were; finish: set at its end; record, guide, tools: where they are asked for."""

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
    kept: list[KeptKeys] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    finish: FinishReason | None = None
    emitted: list[int] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)
    record: Record | None = None
    guide: Guide | None = None
    tools: ToolStream | None = None

    def __post_init__(self) -> None:
        if self.request.logprobs is not None:
            self.record = Record(self.request.logprobs, self.canvas.blocks.length)

    @property
    def lanes(self) -> int:
        """Sequences the request needs per forward: two with guidance."""
        return 2 if self.plan.sampling.cfg_scale else 1

    @property
    def widest(self) -> int:
        """Positions of a decoding forward at most: the open blocks, and as many that they have made final, but one."""
        return (self.plan.policy.window_blocks + 1) * self.canvas.blocks.block

    @cached_property
    def begins(self) -> int:
        """Where the first block with a token to generate begins."""
        return self.canvas.blocks.span(int(self.canvas.editable.long().argmax())).start
