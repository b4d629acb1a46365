# Confidence-aware training (CAP): sharpen the prediction where it is right already, so that more passes a threshold.
# Entry points: Confidence.
# A preset of mask_and_edit. LLaDA2.0 publishes no factor; 2.0 is the value of dFactory's documentation.
"""Objective `confidence`."""

from hildanext.core.objectives.mask_and_edit import MaskAndEdit


class Confidence(MaskAndEdit, confidence=2.0):
    """mask_and_edit + lambda * mean entropy over the masked positions whose best token is the target (0 if none); the
    choice of positions carries no gradient. Source: LLaDA2.0 arXiv:2512.15745 eq. 6."""
