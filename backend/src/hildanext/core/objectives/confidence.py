# Confidence-aware training (CAP): sharpen the prediction where it is right already, so that more passes a threshold.
# Entry points: Confidence.
# LLaDA2.0 publishes no factor; 2.0 is the value of dFactory's documentation.
"""Objective `confidence`."""

from pydantic import Field

from hildanext.core.diffusion import DiffusionObjective


class Confidence(DiffusionObjective):
    """mask_and_edit + lambda * mean entropy over the masked positions whose best token is the target (0 if none); the
    choice of positions carries no gradient. Source: LLaDA2.0 arXiv:2512.15745 eq. 6."""

    confidence: float = Field(2.0, ge=0, description="factor lambda of the entropy at correct masked positions")
