# Label smoothing on every supervised position.
# Entry points: Soft.
# With smoothing the loss no longer bounds a likelihood.
"""Objective `soft`."""

from pydantic import Field

from hildanext.core.diffusion import DiffusionObjective


class Soft(DiffusionObjective):
    """mask_and_edit with targets (1 - s) one-hot + s / V, V without [MASK]."""

    smoothing: float = Field(0.1, ge=0, lt=1, description="share s of the target spread over the vocabulary")
