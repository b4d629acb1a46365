# LLaDA pre-training as its GUIDELINES.md has it: one rate per row, cross-entropy / p_mask, divided by rows x length.
# Entry points: Guidelines.
# A preset of mask_and_edit; soft_ce is the same with smoothed targets.
"""Objective `guidelines`."""

from hildanext.config.noise import ROW_NOISE
from hildanext.core.objectives.mask_and_edit import MaskAndEdit


class Guidelines(MaskAndEdit, noise=ROW_NOISE, keep_weight=0.0, normaliser="position", exclude_mask=False):
    """sum over masked of nll / p_mask / (B x L), p in [1e-3, 1]. Source: LLaDA arXiv:2502.09992 eq. 3, as in its
    repository's GUIDELINES.md."""
