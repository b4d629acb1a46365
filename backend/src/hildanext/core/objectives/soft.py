# Label smoothing on every supervised position.
# Entry points: Soft.
# A preset of mask_and_edit. With smoothing the loss no longer bounds a likelihood.
"""Objective `soft`."""

from hildanext.core.objectives.mask_and_edit import MaskAndEdit


class Soft(MaskAndEdit, smoothing=0.1):
    """mask_and_edit with targets (1 - s) one-hot + s / V, V without [MASK]. Source: label smoothing arXiv:1512.00567
    sec. 7."""
