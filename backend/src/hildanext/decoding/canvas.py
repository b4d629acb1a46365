# The state of one request: which tokens are there, which may change, and how far keys and values are kept.
# Entry points: RequestCanvas (window, canvas, apply), Window, Step.
# A block is dummy (beyond the window), active (being filled), final (tokens fixed) or committed (keys and values kept).
"""Canvas of a request, block by block."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hildanext.core.types import Canvas, Update
from hildanext.decoding.blocks import Blocks, Span


@dataclass(frozen=True)
class Window:
    """Positions [start, stop) of the next forward: final blocks to commit, then the active block, if it fits."""

    start: int
    stop: int
    active: Span | None

    @property
    def size(self) -> int:
        """Positions of the forward."""
        return self.stop - self.start

    @property
    def final_on_entry(self) -> int:
        """Leading positions whose tokens are final before the forward."""
        return (self.active.start if self.active else self.stop) - self.start


@dataclass(frozen=True)
class Step:
    """What one update did. committed_on_entry: the block was final and unchanged, so its keys are right."""

    changed: bool
    final: bool
    committed_on_entry: bool
    mask_share: float
    applied: int
    reverted: int


@dataclass
class RequestCanvas:
    """tokens [length] int64 and editable [length] bool on the CPU; [0, committed) has keys and values, [0, final) will
    not change; step, post and masks count the active block's forwards, edit-only forwards and masks at the start."""

    blocks: Blocks
    tokens: Tensor
    editable: Tensor
    mask_id: int
    committed: int = 0
    final: int = 0
    step: int = 0
    post: int = 0
    masks: int = 0
    before: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    history: tuple[tuple[Tensor, Tensor], ...] = ()

    def __post_init__(self) -> None:
        self._open(0)

    def _open(self, start: int) -> None:
        while start < self.blocks.length and not self.editable[start : self.blocks.span(start).stop].any():
            start = self.blocks.span(start).stop
        self.final, self.step, self.post = start, 0, 0
        block = self.active_tokens()
        self.masks = int((block == self.mask_id).sum())
        self.before, self.history = torch.full_like(block, -1), ()

    @property
    def finished(self) -> bool:
        """Whether every block is final."""
        return self.final >= self.blocks.length

    def active(self) -> Span:
        """The block that is being filled (empty when finished)."""
        return self.blocks.span(self.final) if not self.finished else Span(self.final, self.final)

    def active_tokens(self) -> Tensor:
        """View [Q] of the active block's tokens."""
        span = self.active()
        return self.tokens[span.start : span.stop]

    def window(self, budget: int, fuse: bool) -> Window:
        """The next forward's positions, at most `budget` (rounded down to blocks, never below one block)."""
        pending = self.final - self.committed
        block = self.blocks.block
        room = max(block, budget // block * block)
        if pending > room or (pending and not fuse):
            return Window(self.committed, self.committed + min(pending, room), None)
        if pending and pending + block > room:
            return Window(self.committed, self.final, None)
        return Window(self.committed, self.active().stop, self.active())

    def canvas(self, uniform: Tensor | None = None) -> Canvas:
        """What a policy sees of the active block."""
        span = self.active()
        editable = self.editable[span.start : span.stop]
        return Canvas(self.active_tokens(), editable, self.mask_id, self.step, self.masks, uniform, self.history)

    def apply(self, update: Update, revises: bool, post_steps: int, forced: bool = False) -> Step:
        """Write the update and say whether the block is final: no mask left and nothing more to revise, or `forced`.
        Source: recipe 6.9."""
        old = self.active_tokens().clone()
        changed = bool((update.tokens != old).any())
        full_on_entry = not bool((old == self.mask_id).any())
        reverted = int((update.edited & (update.tokens == self.before)).sum())
        self.before = torch.where(update.edited, old, self.before)
        self.active_tokens().copy_(update.tokens)
        self.step += 1
        self.post += full_on_entry
        share = float((update.tokens == self.mask_id).float().mean())
        settled = not revises or self.post >= post_steps or (full_on_entry and not changed)
        final = share == 0.0 and (settled or forced)
        return Step(changed, final, final and full_on_entry and not changed, share, int(update.edited.sum()), reverted)

    def close(self) -> Span:
        """Declare the active block final and open the next; returns the closed block."""
        span = self.active()
        self._open(span.stop)
        return span
