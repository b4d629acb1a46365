# The noised half of a forward without the blocks that nobody reads, and several noised views of a row beside one clean
# half. Entry points: Compaction.
# Noised blocks see themselves and clean blocks only, so one may be left out, or stand anywhere in the row, without a
# change to another. A row of views v0 v1 with blocks 0..3 of which x are read:
#   v0 [. x x .]  v1 [x . x .]  clean [0 1 2 3]   ->   [v0:1 v0:2 v1:0 v1:2 | 0 1 2 3]
# Letters: B rows, L positions, k views of a row, N columns of the noised part.
"""Noised blocks side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hildanext.core.masks import BlockDiffusionRule

SHAPES = 8
"""N is a multiple of L / SHAPES: libraries keep a kernel for every shape they have met."""


@dataclass(frozen=True)
class Compaction:
    """place [B, N + L]: where each column stands in [noisy | clean] of its row; view [B, N + L]: its view, -1 in the
    clean half; column [B, k, L]: where a noised position stands, N or more where it was left out (never if read)."""

    rule: BlockDiffusionRule
    place: Tensor
    view: Tensor
    column: Tensor

    @classmethod
    def of(cls, rule: BlockDiffusionRule, select: Tensor) -> Compaction:
        """The blocks (groups of blocks) of which select [k B, L] bool, view after view, reads a position. What fills
        the rows up to one width are positions that are not read."""
        length = rule.length
        docs, first = (ids[:, :length].expand(rule.docs.shape[0], -1) for ids in (rule.docs, rule.first))
        rows = docs.shape[0]
        begins = torch.ones_like(docs, dtype=torch.bool)
        begins[:, 1:] = (docs[:, 1:] != docs[:, :-1]) | (first[:, 1:] != first[:, :-1])
        unit = (begins.cumsum(dim=1) - 1).repeat(len(select) // rows, 1)
        read = torch.zeros_like(unit).scatter_add_(1, unit, select.long()).gather(1, unit) > 0
        read = read.view(-1, rows, length).transpose(0, 1).flatten(1)
        step = max(1, length // SHAPES)
        width = min(read.shape[1], -(-int(read.sum(dim=1).max()) // step) * step)
        order = torch.argsort(~read, dim=1, stable=True)
        taken, clean = order[:, :width], torch.arange(length, device=docs.device).expand(rows, -1)
        return cls(
            rule,
            torch.cat([taken % length, length + clean], 1),
            torch.cat([taken // length, torch.full_like(clean, -1)], 1),
            torch.argsort(order, dim=1).view(rows, -1, length),
        )

    @property
    def width(self) -> int:
        """N."""
        return self.place.shape[1] - self.rule.length

    def mask(self) -> Tensor:
        """[B, 1, N + L, N + L] bool, True where visible: the rule, and among noised positions one view.
        Source: LLaDA2.0 arXiv:2512.15745 eq. 3-4, of which this leaves out rows and columns."""
        rows = torch.arange(len(self.place), device=self.place.device)[:, None, None]
        query, key = self.place[:, :, None], self.place[:, None, :]
        one = (self.view[:, :, None] == self.view[:, None, :]) | (key >= self.rule.length)
        return (self.rule.visible(rows, query, key) & one)[:, None]

    def tokens(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """noisy [k B, L], view after view, and clean [B, L] -> [B, N + L]."""
        rows, length = clean.shape
        beside = noisy.view(-1, rows, length).transpose(0, 1).flatten(1)
        index = self.view[:, : self.width] * length + self.place[:, : self.width]
        return torch.cat([beside.gather(1, index), clean], 1)

    def columns(self, view_row: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """(row, column) [n] in the forward of places in [noisy | clean] of the rows view_row (of k B), int64 [n]."""
        rows, length = len(self.place), self.rule.length
        row, noised = view_row % rows, place < length
        stand = self.column[row, view_row // rows, torch.where(noised, place, 0)]
        return row, torch.where(noised, stand, self.width + place - length)
