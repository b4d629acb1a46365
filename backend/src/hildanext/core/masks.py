# Which position may see which: document, causal, block-causal and block-diffusion visibility, one rule for all of them.
# Entry points: block_ids, causal_mask, document_mask, block_causal_mask, block_diffusion_mask, mask_mod, additive.
# Letters: B rows, L positions of a row, Q queries, K keys. The doubled layout [noisy | clean] is 2 L long.
# Padding is a document of its own: nothing else sees it, and it sees itself, so no row is ever empty.
"""Attention visibility of block diffusion; True means visible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GRIDS = ("global", "per_document")


def document_starts(docs: Tensor) -> Tensor:
    """docs [B, L] int -> [B, L] int64: the index at which each position's document begins."""
    index = torch.arange(docs.shape[1], device=docs.device).expand_as(docs)
    first = torch.ones_like(docs, dtype=torch.bool)
    first[:, 1:] = docs[:, 1:] != docs[:, :-1]
    return torch.where(first, index, torch.zeros_like(index)).cummax(dim=1).values


def block_ids(length: int, block: int, docs: Tensor | None = None, grid: str = "global") -> Tensor:
    """Block id of every position, [1 or B, L] int64. `global`: floor(i / block) in the packed row, cut at documents;
    `per_document`: blocks restart with every document. ValueError unless block divides length.
    Source: LLaDA2.0 arXiv:2512.15745 fig. 2 (global); SDAR arXiv:2510.06303 (per document)."""
    if block < 1 or length % block:
        raise ValueError(f"masks: block size {block} does not divide the length {length}")
    if grid not in GRIDS:
        raise ValueError(f"masks: block grid {grid!r}, expected one of {GRIDS}")
    index = torch.arange(length, device=None if docs is None else docs.device)[None]
    if docs is not None and grid == "per_document":
        index = index - document_starts(docs)
    return index // block


def document_mask(docs: Tensor) -> Tensor:
    """docs [B, L] int -> [B, 1, L, L] bool: everything within one document. Source: LLaDA2.0
    arXiv:2512.15745 eq. 4."""
    return (docs[:, :, None] == docs[:, None, :])[:, None]


def causal_mask(docs: Tensor) -> Tensor:
    """docs [B, L] int -> [B, 1, L, L] bool: this and earlier positions of the same document.
    Source: the AR parent's own mask, docs/how-it-works.md."""
    index = torch.arange(docs.shape[1], device=docs.device)
    return document_mask(docs) & (index[:, None] >= index[None, :])


def block_causal_mask(length: int, block: int, docs: Tensor | None = None, grid: str = "global") -> Tensor:
    """Own and earlier blocks of the same document; [B or 1, 1, L, L] bool. Block 1 is the causal mask.
    Source: LLaDA2.0 arXiv:2512.15745 eq. 3, its clean half."""
    blocks = block_ids(length, block, docs, grid)
    seen = (blocks[:, :, None] >= blocks[:, None, :])[:, None]
    return seen if docs is None else seen & document_mask(docs)


def block_diffusion_mask(
    length: int, block: int, docs: Tensor | None = None, grid: str = "global", groups: Tensor | None = None
) -> Tensor:
    """Visibility over [noisy | clean], each `length` long: noisy blocks see themselves and earlier clean blocks, clean
    blocks see clean blocks up to their own. docs [B, L] int or None; groups [B, L] int or None: Batch.groups, blocks of
    a group see those before them in it noisy. Returns [B or 1, 1, 2L, 2L] bool.
    Source: LLaDA2.0 arXiv:2512.15745 eq. 3, times the document factor of eq. 4; groups: arXiv:2606.29215."""
    rule = BlockDiffusionRule.of(length, block, docs, grid, groups)
    index = torch.arange(2 * length, device=rule.blocks.device)
    rows = torch.arange(rule.blocks.shape[0], device=rule.blocks.device)
    return rule.visible(rows[:, None, None, None], index[:, None], index[None, :])


def shifted_places(docs: Tensor, block: int, grid: str, groups: Tensor | None = None) -> Tensor:
    """docs [B, L] int -> [B, L] int64: where in [noisy | clean] a model whose logits predict the next token says what
    stands at each position: one earlier, a block's (group's) first token in the clean half, a document's first token at
    itself. groups: as in block_diffusion_mask. Source: docs/papers.md, model:
    shift and embedding noise."""
    length = docs.shape[1]
    index, starts = torch.arange(length, device=docs.device), document_starts(docs)
    within = index - starts if grid == "per_document" else index.expand_as(starts)
    first = (within % block == 0) & (index > starts)
    if groups is not None:
        first &= groups == within // block
    earlier = torch.where(first, length + index - 1, index - 1)
    return torch.where(index == starts, index, earlier)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as the bias that attention adds: 0 where visible, minus infinity elsewhere; same shape, `dtype`."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


@dataclass(frozen=True)
class BlockDiffusionRule:
    """The block-diffusion rule on indices, from which both the dense mask and the FlexAttention mask_mod are made.
    docs, blocks, first [B or 1, 2L] int64: document, block id and first block of the group of each place of
    [noisy | clean]; length is L. Source: LLaDA2.0 arXiv:2512.15745 eq. 3-4; groups: arXiv:2606.29215."""

    docs: Tensor
    blocks: Tensor
    first: Tensor
    length: int

    @classmethod
    def of(
        cls, length: int, block: int, docs: Tensor | None = None, grid: str = "global", groups: Tensor | None = None
    ) -> BlockDiffusionRule:
        """The rule of one batch; arguments as in block_diffusion_mask."""
        blocks = block_ids(length, block, docs, grid)
        docs = torch.zeros_like(blocks) if docs is None else docs
        both = torch.cat([blocks, blocks], 1).expand(docs.shape[0], -1)
        return cls(torch.cat([docs, docs], 1), both, both if groups is None else torch.cat([groups, groups], 1), length)

    def visible(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether `query` sees `key`, bool of the broadcast shape; indices into [noisy | clean]."""
        same_document = self.docs[row, query] == self.docs[row, key]
        query_clean, key_clean = query >= self.length, key >= self.length
        together = (query_clean == key_clean) & (query_clean | (self.first[row, query] == self.first[row, key]))
        own = together & (self.blocks[row, query] >= self.blocks[row, key])
        earlier = key_clean & ~query_clean & (self.first[row, query] > self.blocks[row, key])
        return same_document & (own | earlier)


def mask_mod(rule: BlockDiffusionRule) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The rule as FlexAttention's mask_mod(row, head, query, key) -> bool; a rule of one row serves every row."""
    rows = rule.docs.shape[0]

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule.visible(row % rows, query, key)

    return visible
