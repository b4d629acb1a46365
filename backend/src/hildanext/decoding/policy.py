# What every decoding policy shares: its protocol towards the engine and the ranking of positions.
# Entry points: BlockPolicy (base of the plugins in policies/), fill (masked positions), best_first (stable ranking),
# least (what a step must fill). How many blocks are open at once is a setting of every policy.
# Thresholds are strict >; ranks are by (-confidence, index) with a stable sort, never torch.topk.
"""Base of the decoding policies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hildanext.config.decode import MOST_WINDOW_BLOCKS, NEVER
from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.statistics import Bias
from hildanext.registry import Plugin


class BlockPolicy(Plugin):
    """A pure rule from statistics and a block to an update. `needs`: the optional Stats it reads; `random`:
    whether it reads canvas.uniform; `remembers`: whether it reads canvas.history; `acts`: whether it reads the model's
    edit actions, which no other policy is shown, and may move tokens."""

    needs: ClassVar[frozenset[str]] = frozenset()
    random: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    acts: ClassVar[bool] = False
    window_blocks: int = Field(
        1, ge=1, le=MOST_WINDOW_BLOCKS, description="blocks open at once at most, a count; 1: one after the other"
    )
    tau_add: float = Field(
        0.9, ge=0.0, le=NEVER, description="filled share of the last open block at which the next opens; above 1: never"
    )
    tau_semi: float = Field(
        0.9, ge=0.0, le=1.0, description="filled share of the block before at which a later one must fill a mask a step"
    )
    tau_stable: float = Field(
        0.0, ge=0.0, le=1.0, description="share of the last open block's tokens its last look agreed with to open more"
    )

    @property
    def revises(self) -> bool:
        """Whether visible positions may change: their statistics are wanted and a full block is looked at again."""
        return False

    @property
    def post_steps(self) -> int:
        """Updates a block without [MASK] may still get."""
        return 0

    def bias(self, canvas: Canvas) -> Bias | None:
        """What is added to the logits before anything is read from them."""
        return None

    def forwards(self, masks: int) -> int:
        """Forwards after which the engine fills a block of `masks` masks whatever the policy says."""
        return masks + self.post_steps + 1

    def looked_at(self, canvas: Canvas) -> Tensor:
        """[Q] bool: positions whose statistics the policy reads; only these get logits."""
        return canvas.editable if self.revises else canvas.tokens == canvas.mask_id

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The update of one block; at least one mask is filled while there are any and the canvas is ready."""
        raise ValueError(f"policy {type(self).__name__} defines no step")


def masked(canvas: Canvas) -> Tensor:
    """[Q] bool: the positions that hold [MASK]."""
    return canvas.tokens == canvas.mask_id


def least(canvas: Canvas, count: int) -> int:
    """Masks a step fills at least: `count`, none while the block before is too empty for guesses (not ready)."""
    return count if canvas.ready else 0


def best_first(score: Tensor, allowed: Tensor, count: int) -> Tensor:
    """[Q] bool: the `count` allowed positions of highest score, ties to the left; fewer where fewer are allowed."""
    scores, chosen = score.tolist(), [False] * allowed.shape[0]
    places = [place for place, free in enumerate(allowed.tolist()) if free]
    # a block is short: lists cost less than a handful of tensor operations
    for place in sorted(places, key=scores.__getitem__, reverse=True)[:count] if count > 0 else ():
        chosen[place] = True
    return torch.tensor(chosen, dtype=torch.bool, device=allowed.device)


def quota(masks: int, steps: int, step: int) -> int:
    """Masks to fill at a step when `masks` are spread over `steps`, remainder first.
    Source: LLaDA arXiv:2502.09992, released sampler (get_num_transfer_tokens)."""
    return masks // steps + (step < masks % steps)


@cache
def single(threshold: float) -> float:
    """The threshold in the precision that float32 probabilities are compared in."""
    return float(torch.tensor(threshold, dtype=torch.float32))


def written(canvas: Canvas, best: Tensor, filled: Sequence[int], edited: Sequence[int]) -> Update:
    """The update that writes `best` at masked places and at visible ones."""
    tokens, marks = canvas.tokens, list[Tensor]()
    for places in (filled, edited):
        marked = [False] * tokens.shape[0]
        for place in places:
            marked[place] = True
        marks.append(torch.tensor(marked, dtype=torch.bool, device=tokens.device))
        tokens = torch.where(marks[-1], best, tokens) if places else tokens
    return Update(tokens, marks[0], marks[1])


def fill(stats: Stats, canvas: Canvas, chosen: Tensor, edited: Tensor | None = None) -> Update:
    """The update that writes each position's predicted token where `chosen` or `edited` [Q] bool."""
    hidden = masked(canvas)
    unmasked = chosen & hidden
    if edited is None:
        return Update(torch.where(unmasked, stats.best, canvas.tokens), unmasked, torch.zeros_like(unmasked))
    changed = edited & ~hidden & canvas.editable
    return Update(torch.where(unmasked | changed, stats.best, canvas.tokens), unmasked, changed)
