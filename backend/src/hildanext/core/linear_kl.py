# KL of two features @ head.T distributions, teacher and student, in chunks of rows: no logits are stored.
# Entry points: weighted_kl (one pass, for training), linear_kl (per position, differentiable), Teacher.
# For distillation: forward or reverse, over the whole vocabulary or over the teacher's k best tokens, both sides
# renormalised there; the temperature divides both sides' logits. Up to five chunk x V buffers are alive at a time.
"""Chunked Kullback-Leibler divergence against a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hildanext.core.head import HeadSums, float_logits, row_slices, same_dtype

COPIES = 2


@dataclass(frozen=True)
class Teacher:
    """features [n, D'], weight [V, D'] of the teacher; top_k: over its k best tokens only, 0: over all; exclude: an id
    that has probability 0 on both sides, or None; chunk: rows at a time, 0 chooses; reverse: KL(student || teacher);
    temperature T: of both sides, the divergence then times T^2, which keeps the size of its gradient."""

    features: Tensor
    weight: Tensor
    top_k: int = 0
    exclude: int | None = None
    chunk: int = 0
    reverse: bool = False
    temperature: float = 1.0


def linear_kl(features: Tensor, weight: Tensor, teacher: Teacher) -> Tensor:
    """KL(teacher || student), or the reverse, [n] float32 or float64, nats, of features [n, D] and weight [V, D];
    differentiable in both, not in the teacher, with any gradient per position.
    Source: docs/papers.md, KL to a teacher."""
    features, weight = same_dtype(features, weight)
    divergence: Tensor = _PerPosition.apply(features, weight, teacher)  # type: ignore[no-untyped-call]
    return divergence


def weighted_kl(features: Tensor, weight: Tensor, teacher: Teacher, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of weights * divergence, divergence [n] without gradient); weights [n] float. The gradient is made in the
    forward pass, so both sides' logits are computed once; one backward per call.
    Source: docs/papers.md, KL to a teacher."""
    features, weight = same_dtype(features, weight)
    total, divergence = _Weighted.apply(features, weight, teacher, weights)  # type: ignore[no-untyped-call]
    return total, divergence


def _log_probabilities(features: Tensor, weight: Tensor, teacher: Teacher, ids: Tensor | None) -> Tensor:
    logits = float_logits(features, weight, teacher.exclude)
    logits = logits if ids is None else logits.gather(1, ids)
    return (logits if teacher.temperature == 1 else logits.div_(teacher.temperature)).log_softmax(dim=1)


def _both(features: Tensor, weight: Tensor, teacher: Teacher, rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
    hers, head = teacher.features[rows].detach(), teacher.weight.detach().to(teacher.features.dtype)
    wanted = _log_probabilities(hers, head, teacher, None)
    ids = wanted.topk(teacher.top_k, dim=1).indices if teacher.top_k else None
    wanted = wanted if ids is None else wanted.gather(1, ids).log_softmax(dim=1)
    return wanted, _log_probabilities(features[rows], weight, teacher, ids), ids


def _of_chunk(
    sums: HeadSums, inputs: tuple[Tensor, Tensor], teacher: Teacher, weights: Tensor | None, rows: slice
) -> Tensor:
    features, weight = inputs
    wanted, given, ids = _both(features, weight, teacher, rows)
    gap = (given - wanted) if teacher.reverse else wanted - given
    over = given.exp() if teacher.reverse else wanted.exp_()
    divergence = (over * gap).sum(dim=1)
    factor = teacher.temperature**2
    if weights is not None and (sums.features is not None or sums.weight is not None):
        made = gap.sub_(divergence[:, None]).mul_(over) if teacher.reverse else given.exp_().sub_(over)
        made.mul_((weights[rows].to(made.dtype) * (factor / teacher.temperature))[:, None])
        if ids is not None:
            made = made.new_zeros(len(made), weight.shape[0]).scatter_(1, ids, made)
        sums.add(made, features, weight, rows)
    return divergence * factor


def _all_chunks(
    sums: HeadSums, inputs: tuple[Tensor, Tensor], teacher: Teacher, weights: Tensor | None
) -> Tensor:  # fmt: skip
    features, weight = inputs
    done = [torch.zeros(0, device=features.device, dtype=torch.promote_types(features.dtype, torch.float32))]
    for rows in row_slices(len(features), weight.shape[0], teacher.chunk, COPIES):
        done.append(_of_chunk(sums, inputs, teacher, weights, rows))
    return torch.cat(done)


class _PerPosition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, teacher: Teacher) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.teacher = teacher
        return _all_chunks(HeadSums(features, weight, (False, False)), (features, weight), teacher, None)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        features, weight = ctx.saved_tensors
        sums = HeadSums(features, weight, ctx.needs_input_grad)
        _all_chunks(sums, (features, weight), ctx.teacher, outer)
        return sums.features, sums.weight, None


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, teacher: Teacher, weights: Tensor) -> Any:
        sums = HeadSums(features, weight, ctx.needs_input_grad)
        divergence = _all_chunks(sums, (features, weight), teacher, weights)
        ctx.sums = sums
        ctx.mark_non_differentiable(divergence)
        return (weights.to(divergence.dtype) * divergence).sum(), divergence

    @staticmethod
    def backward(ctx: Any, total: Tensor, *unused: Tensor) -> Any:
        sums, ctx.sums = ctx.sums, None
        if sums is None:
            raise ValueError("weighted_kl: its gradient was used already; one backward per call")
        return *sums.scaled(total), None, None
