# FlexAttention over [noisy | clean]: one compiled kernel that skips tiles no query sees. For GPUs that compile it.
# Entry points: flex_layout, FlexLayout.
# On the CPU it has no backward and a first call of tens of seconds, so choose_backend never takes it there.
"""The FlexAttention backend."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hildanext.core.masks import BlockDiffusionRule, mask_mod


@cache
def kernel() -> Any:
    """flex_attention, compiled once per process."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@dataclass(frozen=True)
class FlexLayout:
    """A FlexAttention BlockMask as an attention layout."""

    block_mask: Any

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query, key, value [B, H, 2L, D] -> [B, H, 2L, D]."""
        output: Tensor = kernel()(query, key, value, block_mask=self.block_mask, scale=scale)
        return output


def flex_layout(docs: Tensor, block: int, grid: str = "global") -> FlexLayout:
    """The block-diffusion rule for docs [B, L] int, as tiles of which FlexAttention computes the visible ones."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length = docs.shape
    rule = BlockDiffusionRule.of(length, block, docs, grid)
    return FlexLayout(create_block_mask(mask_mod(rule), rows, None, 2 * length, 2 * length, device=str(docs.device)))
