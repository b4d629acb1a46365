# The guidelines loss with smoothed targets: smoothed cross-entropy / p_mask, divided by rows x length.
# Entry points: SoftCe.
# A preset: the fields are those of mask_and_edit with other defaults.
"""Objective `soft_ce`."""

from typing import Literal

from pydantic import Field

from hildanext.config.noise import NoiseConfig
from hildanext.core.diffusion import DiffusionObjective

ROW_NOISE = NoiseConfig(unit="sequence", replace=0.0)


class SoftCe(DiffusionObjective):
    """sum over masked of smoothed nll / p_mask / (B x L)."""

    noise: NoiseConfig = Field(ROW_NOISE, description="one mask rate per row, no replaced tokens")
    keep_weight: float = Field(0.0, ge=0, description="factor of the KEEP term")
    normaliser: Literal["token", "masked", "document", "sequence", "position"] = Field(
        "position", description="denominator: all B x L positions"
    )
    smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over the vocabulary")
    exclude_mask: bool = Field(False, description="give [MASK] probability 0 in every prediction")
