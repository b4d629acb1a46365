# Residual context diffusion: what was predicted at a masked position is in its next input, the more the vaguer it was.
# Entry points: Rcd.
# The residual is made of the k likeliest tokens, renormalised; with k the whole vocabulary it is the paper's.
"""Carry `rcd`."""

from __future__ import annotations

from pydantic import Field

from hildanext.core.carry import Carried, Carry, Likely, renormalised


class Rcd(Carry):
    """(1 - a) E[MASK] + a sum_v p_v E_v, a the entropy of softmax(z / temperature) over its largest value.
    Source: Residual Context Diffusion arXiv:2601.22954 eq. 1-3; the cut to k tokens is ours."""

    strength: float = Field(1.0, ge=0.0, le=1.0, description="factor of a; 0: nothing is carried")

    def carried(self, found: Likely, step: int) -> Carried:
        """Residuals weighted by their entropies."""
        share = self.strength * found.spread
        return Carried(found.ids, renormalised(found.probability) * share[:, None], 1.0 - share)
