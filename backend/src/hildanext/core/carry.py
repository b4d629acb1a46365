# What a position carries from one forward to the next beside its token: the prediction, as a mixture of embeddings.
# Entry points: Carry (base of the plugins in carries/), Likely and likely (what a forward predicts), Carried.
# One interface for all: per position the k likeliest ids, their weights, and the weight of [MASK].
# Letters: n positions, k ids of each, V vocabulary.
"""Carry-over between denoising steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.head import exclude_token, row_slices
from hildanext.core.mixture import Mixture
from hildanext.registry import Plugin


@dataclass(frozen=True)
class Likely:
    """A prediction [n]. ids [n, k] int64, likeliest first; probability [n, k] float32 of each; spread [n]: entropy of
    the softmax of logits / temperature, over its largest value, in [0, 1]."""

    ids: Tensor
    probability: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Carried:
    """ids [n, k] int64, their weights [n, k] float32, and the weight [n] of [MASK]."""

    ids: Tensor
    weights: Tensor
    mask_weight: Tensor

    def mixture(self, mask_id: int, rows: Tensor, columns: Tensor, norms: bool) -> Mixture:
        """As the input at (rows, columns) [n]; norms: rescaled to the weighted mean of the norms."""
        ids = torch.cat([self.ids, torch.full_like(self.ids[:, :1], mask_id)], dim=1)
        weights = torch.cat([self.weights, self.mask_weight[:, None]], dim=1)
        return Mixture(rows, columns, ids, weights, torch.full_like(rows, norms, dtype=torch.bool))


def likely(scores: Tensor, mask_id: int, count: int, temperature: float = 1.0) -> Likely:
    """The prediction of logits [n, V] without [MASK], which are not changed; its `count` likeliest ids."""
    count, parts = min(count, scores.shape[1] - 1), []
    for rows in row_slices(scores.shape[0], scores.shape[1], copies=4):
        own = exclude_token(scores[rows].float().clone(), mask_id)
        probability, ids = own.softmax(dim=1).topk(count, dim=1)
        heated = (own / temperature).log_softmax(dim=1) if temperature != 1.0 else own.log_softmax(dim=1)
        entropy = -(heated.exp() * heated.clamp(min=-1e4)).sum(dim=1)
        most = torch.tensor(max(2, own.shape[1] - 1)).log()
        parts.append(Likely(ids, probability, (entropy / most).clamp(0.0, 1.0)))
    joined = [torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "probability", "spread")]
    return Likely(*joined)


class Carry(Plugin):
    """A pure rule from predictions to inputs of the next forward of the same block. `filled`: positions that hold a
    token carry too; `norms`: mixtures keep the norm of what they are made of."""

    filled: ClassVar[bool] = False
    norms: ClassVar[bool] = False
    top_k: int = Field(32, ge=1, le=4096, description="likeliest tokens that are carried, a count")
    temperature: float = Field(1.0, gt=0.0, le=100.0, description="of the distribution whose entropy is read")

    def carried(self, found: Likely, step: int) -> Carried:
        """What masked positions [n] carry after forward number `step` of their block, from 0."""
        raise ValueError(f"carry {type(self).__name__} defines no carried")

    def held(self, tokens: Tensor, probability: Tensor) -> Carried:
        """What positions that hold `tokens` [n] with `probability` [n] of them carry; only asked where `filled`."""
        raise ValueError(f"carry {type(self).__name__} defines no held")


def renormalised(probability: Tensor) -> Tensor:
    """[n, k] divided by its sums."""
    return probability / probability.sum(dim=1, keepdim=True).clamp(min=1e-12)
