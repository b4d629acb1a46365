# LLaDA pre-training as its GUIDELINES.md has it: one rate per row, cross-entropy / p_mask, divided by rows x length.
# Entry points: Guidelines.
# A preset: the fields are those of mask_and_edit with other defaults.
"""Objective `guidelines`."""

from typing import Literal

from pydantic import Field

from hildanext.config.noise import NoiseConfig
from hildanext.core.diffusion import DiffusionObjective

ROW_NOISE = NoiseConfig(unit="sequence", replace=0.0)


class Guidelines(DiffusionObjective):
    """sum over masked of nll / p_mask / (B x L), p in [1e-3, 1]. Source: LLaDA GUIDELINES.md, recipe 1.3."""

    noise: NoiseConfig = Field(ROW_NOISE, description="one mask rate per row, no replaced tokens")
    keep_weight: float = Field(0.0, ge=0, description="factor of the KEEP term")
    normaliser: Literal["token", "masked", "document", "sequence", "position"] = Field(
        "position", description="denominator: all B x L positions"
    )
    exclude_mask: bool = Field(False, description="give [MASK] probability 0 in every prediction")
