# LLaDA2.1's two streams in one forward: fill masked positions (M2T), restore replaced tokens (T2T), keep right ones.
# Entry points: MaskAndEdit.
# The default objective of convert-wsd and sft. noise.replace=0 and keep_weight=0 leave the plain block-diffusion loss.
"""Objective `mask_and_edit`."""

from hildanext.core.diffusion import DiffusionObjective


class MaskAndEdit(DiffusionObjective):
    """[sum_M2T w(t) nll + lambda_e sum_T2T nll + lambda_k sum_KEEP nll] / maskable tokens.
    Source: LLaDA2.1 arXiv:2602.08676 sec. 3.1; ratio, weights and the KEEP term are ours (recipe 4.1)."""
