# LLaDA2.1's joint threshold: fill confident masks, rewrite visible tokens the model now confidently disagrees with.
# Entry points: ThresholdEdit.
# Edits touch visible, non-given positions only: read literally the paper's edit set would void tau_mask.
"""Policy `threshold_edit`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, least, single, written
from hildanext.decoding.statistics import Bias


class ThresholdEdit(BlockPolicy):
    """Unmask set: masked and p > tau_mask, at least `minimum_transfers` of highest confidence; edit set: visible, not
    given, p > tau_edit and another token. Source: LLaDA2.1 arXiv:2602.08676 eq. 1-3."""

    tau_mask: float = Field(0.7, ge=0.0, le=1.0, description="probability a masked position must exceed to be filled")
    tau_edit: float | None = Field(
        0.5, ge=0.0, le=1.0, description="probability a rewrite must exceed; 0: edit freely; null: no editing"
    )
    max_post_steps: int = Field(16, ge=0, description="edit updates of a block without masks, a count")
    minimum_transfers: int = Field(1, ge=1, description="masks filled per forward at least, a count")
    repetition_penalty: float = Field(0.0, ge=0.0, description="logits taken off the token to the left")

    @property
    def revises(self) -> bool:
        """Editing is on unless tau_edit is None."""
        return self.tau_edit is not None

    @property
    def post_steps(self) -> int:
        """max_post_steps with editing, 0 without."""
        return self.max_post_steps if self.revises else 0

    def bias(self, canvas: Canvas) -> Bias | None:
        """-repetition_penalty on the token to the left, where one is visible within the block.
        It is the penalty_lambda of SGLang's joint threshold."""
        if not self.repetition_penalty:
            return None
        left = torch.cat((canvas.tokens.new_tensor([canvas.mask_id]), canvas.tokens[:-1]))
        amount = torch.where(left == canvas.mask_id, 0.0, -self.repetition_penalty)
        return Bias(left.unsqueeze(1), amount.unsqueeze(1))

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """Both sets of one forward, applied together."""
        mask_id, sure = canvas.mask_id, single(self.tau_mask)
        # a block is short: lists cost less than two dozen tensor operations
        tokens, best, probability = canvas.tokens.tolist(), stats.best.tolist(), stats.probability.tolist()
        hidden = [place for place, token in enumerate(tokens) if token == mask_id]
        chosen = [place for place in hidden if probability[place] > sure]
        wanted = min(least(canvas, self.minimum_transfers), len(hidden))
        if len(chosen) < wanted:
            chosen = surest(hidden, probability, wanted)
        edited = self._edits(canvas, tokens, best, probability) if len(hidden) < len(tokens) else []
        return written(canvas, stats.best, chosen, edited)

    def _edits(
        self, canvas: Canvas, tokens: Sequence[int], best: Sequence[int], probability: Sequence[float]
    ) -> list[int]:
        if self.tau_edit is None:
            return []
        mask_id, doubtful, free = canvas.mask_id, single(self.tau_edit), canvas.editable.tolist()
        return [
            place for place, (token, pick) in enumerate(zip(tokens, best, strict=True))
            if pick != token != mask_id and free[place] and probability[place] > doubtful
        ]  # fmt: skip


def surest(places: Sequence[int], probability: Sequence[float], count: int) -> list[int]:
    """The `count` of these places with the highest probability, the leftmost of equal ones first."""
    return sorted(places, key=probability.__getitem__, reverse=True)[:count]
