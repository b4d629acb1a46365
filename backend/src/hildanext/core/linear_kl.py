# KL(teacher || student) of two features @ head.T distributions, in chunks of rows: no logits are stored.
# Entry points: linear_kl, Teacher.
# For distillation: over the whole vocabulary, or over the teacher's k best tokens, both sides renormalised there.
"""Chunked Kullback-Leibler divergence against a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hildanext.core.head import float_logits, row_slices


@dataclass(frozen=True)
class Teacher:
    """features [n, D'], weight [V, D'] of the teacher; top_k: over its k best tokens only, 0: over all; exclude: an id
    that has probability 0 on both sides, or None; chunk: rows at a time, 0 chooses."""

    features: Tensor
    weight: Tensor
    top_k: int = 0
    exclude: int | None = None
    chunk: int = 0


def linear_kl(features: Tensor, weight: Tensor, teacher: Teacher) -> Tensor:
    """KL(teacher || student) [n] float32 or float64, nats, of features [n, D] and weight [V, D]; differentiable in
    both, not in the teacher. Source: docs/papers.md, KL to a teacher."""
    divergence: Tensor = _LinearKL.apply(features, weight, teacher)  # type: ignore[no-untyped-call]
    return divergence


def _log_probabilities(features: Tensor, weight: Tensor, exclude: int | None, ids: Tensor | None) -> Tensor:
    logits = float_logits(features, weight, exclude)
    return (logits if ids is None else logits.gather(1, ids)).log_softmax(dim=1)


def _both(features: Tensor, weight: Tensor, teacher: Teacher, rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
    wanted = _log_probabilities(teacher.features[rows].detach(), teacher.weight.detach(), teacher.exclude, None)
    ids = wanted.topk(teacher.top_k, dim=1).indices if teacher.top_k else None
    wanted = wanted if ids is None else wanted.gather(1, ids).log_softmax(dim=1)
    return wanted, _log_probabilities(features[rows], weight, teacher.exclude, ids), ids


class _LinearKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, teacher: Teacher) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.teacher = teacher
        done = [torch.zeros(0, device=features.device, dtype=torch.promote_types(features.dtype, torch.float32))]
        for rows in row_slices(len(features), weight.shape[0], teacher.chunk):
            wanted, given, _ = _both(features, weight, teacher, rows)
            done.append((wanted.exp() * (wanted - given)).sum(dim=1))
        return torch.cat(done)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        features, weight = ctx.saved_tensors
        for_features, for_weight = torch.empty_like(features), torch.zeros_like(weight)
        for rows in row_slices(len(features), weight.shape[0], ctx.teacher.chunk):
            wanted, given, ids = _both(features, weight, ctx.teacher, rows)
            gradient = given.exp_().sub_(wanted.exp_()).mul_(outer[rows][:, None])
            if ids is not None:
                gradient = gradient.new_zeros(len(gradient), weight.shape[0]).scatter_(1, ids, gradient)
            gradient = gradient.to(features.dtype)
            torch.mm(gradient, weight, out=for_features[rows])
            for_weight.addmm_(gradient.T, features[rows])
        return for_features, for_weight, None
