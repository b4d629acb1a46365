# The guidelines loss with smoothed targets: smoothed cross-entropy / p_mask, divided by rows x length.
# Entry points: SoftCe.
# A preset of mask_and_edit: guidelines and soft together.
"""Objective `soft_ce`."""

from hildanext.core.objectives.guidelines import Guidelines


class SoftCe(Guidelines, smoothing=0.1):
    """sum over masked of smoothed nll / p_mask / (B x L). Source: LLaDA arXiv:2502.09992 eq. 3, label smoothing
    arXiv:1512.00567 sec. 7."""
