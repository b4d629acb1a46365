# LLaDA2.1's joint threshold: fill confident masks, rewrite visible tokens the model now confidently disagrees with.
# Entry points: ThresholdEdit.
# Edits touch visible, non-given positions only: read literally the paper's edit set would void tau_mask.
"""Policy `threshold_edit`."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, least, masked
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
        hidden = masked(canvas)
        chosen = hidden & (stats.probability > self.tau_mask)
        wanted = min(least(canvas, self.minimum_transfers), int(hidden.sum()))
        if int(chosen.sum()) < wanted:
            chosen = best_first(stats.probability, hidden, wanted)
        return fill(stats, canvas, chosen, self._edits(stats, canvas, hidden))

    def _edits(self, stats: Stats, canvas: Canvas, hidden: Tensor) -> Tensor | None:
        if self.tau_edit is None:
            return None
        differs = stats.best != canvas.tokens
        return ~hidden & canvas.editable & differs & (stats.probability > self.tau_edit)
