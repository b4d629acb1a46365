# LLaDA's low-confidence remasking as a quota: a fixed count of masks per forward, the most confident first.
# Entry points: StaticQuota.
# The quota counts the block's masks at its start, remainder first; others round otherwise (Dream floors what is left).
"""Policy `static_quota`."""

from __future__ import annotations

from pydantic import Field

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, least, quota, written


class StaticQuota(BlockPolicy):
    """The n_j masked positions of highest probability at step j.
    Source: LLaDA arXiv:2502.09992, low-confidence remasking."""

    steps: int = Field(0, ge=0, description="forwards a block's masks are spread over, a count; 0: one per mask")

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The quota of this step, best first."""
        count = quota(canvas.masks, self.steps or max(1, canvas.masks), canvas.step)
        probability = stats.probability.tolist()
        hidden = [place for place, token in enumerate(canvas.tokens.tolist()) if token == canvas.mask_id]
        best = sorted(hidden, key=probability.__getitem__, reverse=True)
        return written(canvas, stats.best, best[: least(canvas, max(1, count))], ())
