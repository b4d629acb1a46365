# LLaDA2.2's editing: beside writing and rewriting, tokens are deleted and room is made for missing ones.
# Entry points: ThresholdIndel, Memory.
# For models with edit actions (objective edit_actions). Which masks were there from the start travels with the tokens;
# seen states are remembered, so that a block cannot go round in circles; given tokens stand before what moves.
"""Policy `threshold_indel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.levenshtein import Controls, apply, moved
from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, least, masked

Tried = dict[tuple[int, ...], dict[int, frozenset[int]]]


@dataclass(frozen=True)
class Memory:
    """original [Q] bool: masks of the block's start that are left; edits: actions since none was; tried: of every
    state seen, the tokens written at each position from it."""

    original: Tensor
    edits: int
    tried: Tried


class ThresholdIndel(BlockPolicy):
    """Masks with p > tau_mask are filled, at least one more than INSERT has made while masks of the start are left and
    all of them then; visible tokens with p > tau_edit are kept, substituted, deleted, or get a mask before them.
    Source: LLaDA2.2 sec. 3.2, as SGLang's JointThresholdInDel; budget, memory and cap: see docs/decoding-methods.md."""

    needs: ClassVar[frozenset[str]] = frozenset({"ranked"})
    acts: ClassVar[bool] = True
    tau_mask: float = Field(0.5, ge=0.0, le=1.0, description="probability a masked position must exceed to be filled")
    tau_edit: float = Field(0.0, ge=0.0, le=1.0, description="probability an edit of a visible token must exceed")
    tau_move: float = Field(
        0.5, ge=0.0, le=1.0, description="probability that DELETE and INSERT must exceed, beside tau_edit"
    )
    max_post_steps: int = Field(16, ge=0, description="edits of a block once its own masks are filled, a count")

    @property
    def revises(self) -> bool:
        """Always."""
        return True

    @property
    def post_steps(self) -> int:
        """max_post_steps."""
        return self.max_post_steps

    def forwards(self, masks: int) -> int:
        """One for each mask and edit, and two more."""
        return masks + self.max_post_steps + 2

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """All actions of one forward, applied together."""
        hidden, size = masked(canvas), len(canvas.tokens)
        memory = canvas.memory or Memory(hidden, 0, {})
        controls = canvas.controls or Controls(-1, -1, canvas.mask_id)
        last = canvas.step + 1 >= self.forwards(canvas.masks)
        budget = 0 if last else self.max_post_steps - memory.edits
        state = tuple(canvas.tokens.tolist())
        picks, sure = self._picks(stats, canvas, memory.tried.get(state, {}))
        filled = self._filled(canvas, hidden & memory.original, hidden, sure)
        filled = hidden if last else filled
        edits = self._edits(canvas, hidden, picks, sure, budget, bool((hidden & memory.original).any()))
        actions = torch.where(filled | edits, picks, canvas.tokens)
        tried = _remembered(memory.tried, state, picks, filled | edits)
        return self._applied(canvas, memory, (actions, filled, edits, tried), controls, size)

    def _picks(self, stats: Stats, canvas: Canvas, tried: dict[int, frozenset[int]]) -> tuple[Tensor, Tensor]:
        if stats.ranked is None or stats.ranks is None:
            raise ValueError("policy threshold_indel: the statistics carry no ranks")
        picks, sure, hidden = stats.best.clone(), stats.probability.clone(), masked(canvas)
        barred, change = set((canvas.controls or ())[:2]), hidden | (picks != canvas.tokens)
        again = [p for p in sorted(tried, key=lambda p: float(sure[p])) if change[p] and int(picks[p]) in tried[p]][:1]
        for place in range(len(picks)):
            never = barred if bool(hidden[place]) else set()
            wrong = never | (set(tried[place]) if place in again else set())
            if int(picks[place]) in wrong:
                ranked = list(zip(stats.ranked[place].tolist(), stats.ranks[place].tolist(), strict=True))
                free = [one for one in ranked if one[0] not in wrong]
                rest = [one for one in ranked if one[0] not in never] if never else [(int(canvas.tokens[place]), 0.0)]
                picks[place], sure[place] = (free or rest)[0]
        return picks, sure

    def _filled(self, canvas: Canvas, original: Tensor, hidden: Tensor, sure: Tensor) -> Tensor:
        if not bool(original.any()):
            return hidden if canvas.ready else hidden & (sure > self.tau_mask)
        made = int((hidden & ~original).sum())
        chosen = hidden & (sure > self.tau_mask)
        wanted = least(canvas, 1 + made)
        return chosen if int(chosen.sum()) >= wanted else best_first(sure, hidden, wanted)

    def _edits(
        self, canvas: Canvas, hidden: Tensor, picks: Tensor, sure: Tensor, budget: int, drafting: bool
    ) -> Tensor:
        moves = torch.isin(picks, torch.tensor((canvas.controls or (-1, -1))[:2]))
        wanted = canvas.editable & ~hidden & (picks != canvas.tokens) & (sure > self.tau_edit)
        wanted &= ~moves | (sure > self.tau_move)
        most = len(picks) if drafting and budget > 0 else max(0, budget)
        return best_first(sure, wanted, most)

    def _applied(
        self, canvas: Canvas, memory: Memory, done: tuple[Tensor, Tensor, Tensor, Tried], controls: Controls, size: int
    ) -> Update:
        actions, filled, edits, tried = done
        first = int(canvas.editable.long().argmax()) if bool(canvas.editable.any()) else size
        own = actions[first:].tolist()
        tokens = torch.tensor([*canvas.tokens[:first].tolist(), *apply(canvas.tokens[first:].tolist(), own, controls)])
        source = torch.tensor([*range(first), *(at + first if at >= 0 else -1 for at in moved(own, controls))])
        here = source.clamp(min=0)
        came = source >= 0
        original = memory.original & ~filled
        left = bool(original.any())
        count = memory.edits + (0 if bool((masked(canvas) & memory.original).any()) else int(edits.sum()))
        written = came & ~torch.isin(actions[here], torch.tensor(controls[:2]))
        shifted = bool((source != torch.arange(size)).any())
        return Update(
            tokens, filled[here] & came & (tokens != canvas.mask_id), edits[here] & written,
            moved=source if shifted else None, edits=int(edits.sum()),
            memory=Memory(original[here] & came & left & (tokens == canvas.mask_id), count, tried),
        )  # fmt: skip


def _remembered(tried: Tried, state: tuple[int, ...], picks: Tensor, changed: Tensor) -> Tried:
    before = tried.get(state, {})
    now = {
        place: before.get(place, frozenset()) | {int(picks[place])} for place in changed.nonzero().flatten().tolist()
    }
    return {**tried, state: {**before, **now}}
