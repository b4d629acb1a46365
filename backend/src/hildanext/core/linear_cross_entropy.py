# Cross-entropy of features @ head.T without ever holding all logits: chunks of rows, with a backward of its own.
# Entry points: weighted_cross_entropy (one pass, for training), linear_cross_entropy (per-token, differentiable),
# TokenScores. Softmax and sums are float32 (float64 for float64 features).
# Letters: n positions, D width, V vocabulary. Two chunk x V buffers are alive at a time.
"""Chunked linear cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hildanext.core.head import (
    PLAIN,
    HeadOptions,
    HeadSums,
    even_rows,
    exclude_token,
    float_logits,
    row_slices,
    same_dtype,
)


@dataclass(frozen=True)
class TokenScores:
    """Per position, [n] each. nll: -log p(target) in nats, smoothed where asked; entropy of p in nats; best int64:
    most likely token (ties: lowest id); probability of best; drawn int64: a token sampled from p, where asked."""

    nll: Tensor
    entropy: Tensor
    best: Tensor
    probability: Tensor
    correct: Tensor
    drawn: Tensor | None = None


@dataclass(frozen=True)
class _Chunk:
    exps: Tensor
    sums: Tensor
    nll: Tensor
    entropy: Tensor
    best: Tensor


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    exclude: int | None = None,
    smoothing: float = 0.0,
    chunk: int = 0,
) -> TokenScores:
    """features [n, D], weight [V, D], targets [n] int64 -> TokenScores; nll and entropy are differentiable, with any
    gradient per token; the backward computes the logits again.
    Source: cut cross-entropy arXiv:2411.09009, here in chunks of rows."""
    features, weight = same_dtype(features, weight)
    more = even_rows(len(targets), weight.shape[0], chunk) - len(targets)
    found = _PerToken.apply(  # type: ignore[no-untyped-call]
        pad(features, (0, 0, 0, more)), weight, pad(targets, (0, more)), HeadOptions(exclude, smoothing, chunk)
    )
    nll, entropy, best, probability = (each[: len(targets)] for each in found)
    return TokenScores(nll, entropy, best, probability, best == targets)


def weighted_cross_entropy(
    features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, options: HeadOptions = PLAIN
) -> tuple[Tensor, TokenScores]:
    """(sum of weights * nll, scores without gradient). weights [n] float, or [2, n]: the second row weighs the entropy.
    The gradient is made in the forward pass, so the logits are computed once; one backward per call.
    Source: Liger Kernel arXiv:2410.10989, fused linear cross-entropy."""
    features, weight = same_dtype(features, weight)
    more = even_rows(len(targets), weight.shape[0], options.chunk) - len(targets)
    total, *found = _Weighted.apply(  # type: ignore[no-untyped-call]
        pad(features, (0, 0, 0, more)), weight, pad(targets, (0, more)), weights, options
    )
    nll, entropy, best, probability = (each[: len(targets)] for each in found)
    return total, TokenScores(nll, entropy, best, probability, best == targets)


def _forward(features: Tensor, weight: Tensor, targets: Tensor, options: HeadOptions) -> _Chunk:
    logits = float_logits(features, weight)
    smooth = logits.new_zeros(())
    if options.smoothing > 0:
        if options.exclude is not None:
            logits[:, options.exclude] = 0.0
        smooth = logits.sum(dim=1) / (logits.shape[1] - int(options.exclude is not None))
    top, best = exclude_token(logits, options.exclude).max(dim=1)
    logits -= top[:, None]
    own = logits.gather(1, targets[:, None])[:, 0]
    exps = logits.exp()
    sums = exps.sum(dim=1)
    log_sums = sums.log()
    entropy = log_sums - logits.mul_(exps).sum(dim=1) / sums
    nll = log_sums - own
    if options.smoothing > 0:
        nll = (1 - options.smoothing) * nll + options.smoothing * (log_sums + top - smooth)
    return _Chunk(exps, sums, nll, entropy, best)


def _logit_gradient(
    chunk: _Chunk, targets: Tensor, nll: Tensor, entropy: Tensor | None, options: HeadOptions
) -> Tensor:
    if entropy is None:
        gradient = chunk.exps.mul_((nll / chunk.sums)[:, None])
    else:
        shares = chunk.exps.div_(chunk.sums[:, None])
        surplus = shares.clamp(min=torch.finfo(shares.dtype).tiny).log_().add_(chunk.entropy[:, None])
        gradient = surplus.mul_(-entropy[:, None]).add_(nll[:, None]).mul_(shares)
    if options.smoothing > 0:
        others = gradient.shape[1] - int(options.exclude is not None)
        gradient -= (options.smoothing / others * nll)[:, None]
        if options.exclude is not None:
            gradient[:, options.exclude] = 0.0
    gradient.scatter_add_(1, targets[:, None], ((options.smoothing - 1) * nll)[:, None])
    return gradient


def _of_chunk(
    sums: HeadSums,
    inputs: tuple[Tensor, Tensor, Tensor],
    outer: tuple[Tensor, Tensor | None],
    options: HeadOptions,
    rows: slice,
) -> _Chunk:
    features, weight, targets = inputs
    chunk = _forward(features[rows], weight, targets[rows], options)
    light, dtype = _light(chunk), chunk.sums.dtype
    if sums.features is not None or sums.weight is not None:
        entropy = None if outer[1] is None else outer[1].to(dtype)
        gradient = _logit_gradient(chunk, targets[rows], outer[0].to(dtype), entropy, options)
        sums.add(gradient, features, weight, rows)
    return light


def _joined(chunks: list[_Chunk], like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not chunks:
        empty = torch.zeros(0, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
        return empty, empty.clone(), empty.long(), empty.clone()
    nll = torch.cat([chunk.nll for chunk in chunks])
    entropy = torch.cat([chunk.entropy for chunk in chunks])
    best = torch.cat([chunk.best for chunk in chunks])
    return nll, entropy, best, torch.cat([chunk.sums for chunk in chunks]).reciprocal()


def _light(chunk: _Chunk) -> _Chunk:
    return _Chunk(chunk.sums, chunk.sums, chunk.nll, chunk.entropy, chunk.best)


class _PerToken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, options: HeadOptions) -> Any:
        done = []
        for rows in row_slices(len(targets), weight.shape[0], options.chunk):
            done.append(_light(_forward(features[rows], weight, targets[rows], options)))
        ctx.save_for_backward(features, weight, targets)
        ctx.options = options
        nll, entropy, best, probability = _joined(done, features)
        ctx.mark_non_differentiable(best, probability)
        return nll, entropy, best, probability

    @staticmethod
    def backward(ctx: Any, nll: Tensor, entropy: Tensor, *unused: Tensor) -> Any:
        features, weight, targets = ctx.saved_tensors
        sums = HeadSums(features, weight, ctx.needs_input_grad)
        for rows in row_slices(len(targets), weight.shape[0], ctx.options.chunk):
            _of_chunk(sums, (features, weight, targets), (nll[rows], entropy[rows]), ctx.options, rows)
        return sums.features, sums.weight, None, None


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, options: HeadOptions
    ) -> Any:
        done, sums, count = [], HeadSums(features, weight, ctx.needs_input_grad), weights.shape[-1]
        weights = pad(weights, (0, len(targets) - count))
        for_nll, for_entropy = (weights, None) if weights.dim() == 1 else (weights[0], weights[1])
        for rows in row_slices(len(targets), weight.shape[0], options.chunk):
            outer = (for_nll[rows], None if for_entropy is None else for_entropy[rows])
            done.append(_of_chunk(sums, (features, weight, targets), outer, options, rows))
        ctx.sums = sums
        nll, entropy, best, probability = _joined(done, features)
        total = (for_nll.to(nll.dtype) * nll)[:count].sum()
        total = total if for_entropy is None else total + (for_entropy.to(nll.dtype) * entropy)[:count].sum()
        ctx.mark_non_differentiable(nll, entropy, best, probability)
        return total, nll, entropy, best, probability

    @staticmethod
    def backward(ctx: Any, total: Tensor, *unused: Tensor) -> Any:
        sums, ctx.sums = ctx.sums, None
        if sums is None:
            raise ValueError("weighted_cross_entropy: its gradient was used already; one backward per call")
        return *sums.scaled(total), None, None, None
