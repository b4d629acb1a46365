# From scored positions to a LossReport: sums by set, by mask rate and by block size, each with its count.
# Entry points: sums_of, autoregressive_report, autoregressive_scores, scored_positions, merged, joined, RATE_BUCKETS.
# parts[name] / counts[name], both summed over micro-batches and ranks, is the mean the name stands for.
"""Reported sums of a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hildanext.core.head import HeadOptions
from hildanext.core.linear_cross_entropy import TokenScores, weighted_cross_entropy
from hildanext.core.noise import Corruption, maskable
from hildanext.core.types import Batch, Denoiser, LossReport

RATE_BUCKETS = 5
SETS = ("m2t", "t2t", "keep")


def sums_of(
    view: Corruption, select: Tensor, scores: TokenScores, block: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(parts, counts) of the positions at `select` [B, L] bool. m2t | t2t | keep: nll; *_accuracy: correct
    predictions; elbo: ELBO-weighted nll over maskable tokens; confidence: entropy at correct masked positions;
    block_N: m2t nll at this block size; rate_a_b: m2t nll of mask rates in [a, b)."""
    nll = scores.nll.detach().double()
    sets = torch.stack([view.m2t[select], view.t2t[select], view.keep[select]]).double()
    correct = scores.correct.double()
    sure = sets[0] * correct
    values = torch.stack([nll, correct, view.elbo[select].double() * nll, torch.ones_like(nll)])
    table, entropy = sets @ values.T, sure @ scores.entropy.double()
    parts, counts = {}, {}
    for row, name in zip(table, SETS, strict=True):
        parts[name], counts[name] = row[0], row[3]
        parts[f"{name}_accuracy"], counts[f"{name}_accuracy"] = row[1], row[3]
    length = view.tokens.shape[1]
    size = f"block_{block if 0 < block < length else length}"
    parts |= {"elbo": table[0, 2], "confidence": entropy, size: table[0, 0]}
    counts |= {"elbo": view.maskable.sum().double(), "confidence": sure.sum(), size: table[0, 3]}
    return _with_buckets(parts, counts, view.rate[select], sets[0], nll)


def _with_buckets(
    parts: dict[str, Tensor], counts: dict[str, Tensor], rate: Tensor, masked: Tensor, nll: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    bucket = (rate * RATE_BUCKETS).long().clamp(0, RATE_BUCKETS - 1)
    sums = torch.zeros(RATE_BUCKETS, 2, dtype=nll.dtype, device=nll.device)
    sums.index_add_(0, bucket, torch.stack([masked * nll, masked], dim=1))
    for index in range(RATE_BUCKETS):
        name = f"rate_{index / RATE_BUCKETS:.1f}_{(index + 1) / RATE_BUCKETS:.1f}"
        parts[name], counts[name] = sums[index, 0], sums[index, 1]
    return parts, counts


def scored_positions(batch: Batch, mask_id: int) -> Tensor:
    """[B, L] bool: maskable and not the first of a document, which no causal model predicts; the positions on which
    autoregressive and diffusion likelihood are compared. Source: docs/papers.md, AR NLL on the same positions."""
    return maskable(batch, mask_id) & (batch.positions() > 0)


def autoregressive_report(
    model: Denoiser, batch: Batch, exclude_mask: bool = True, weight: Tensor | None = None
) -> LossReport:
    """Next-token cross-entropy over scored_positions; normaliser: their count. weight [B, L] float32: of each position
    in the total, 1 where none is given; the parts have none. Source: docs/papers.md, next-token loss."""
    return autoregressive_scores(model, batch, exclude_mask, weight)[0]


def autoregressive_scores(
    model: Denoiser, batch: Batch, exclude_mask: bool = True, weight: Tensor | None = None
) -> tuple[LossReport, TokenScores]:
    """autoregressive_report, and the scores [n] of its positions. Source: docs/papers.md, next-token loss."""
    select = scored_positions(batch, model.mask_id)
    features, targets = model.causal_features(batch, select), batch.tokens[select]
    options = HeadOptions(model.mask_id if exclude_mask else None)
    weights = torch.ones(len(targets), device=features.device) if weight is None else weight[select]
    total, scores = weighted_cross_entropy(features, model.head(), targets, weights, options)
    count = select.sum().float()
    nats = (total if weight is None else scores.nll.sum()).detach().double()
    parts = {"autoregressive": nats, "autoregressive_accuracy": scores.correct.double().sum()}
    return LossReport(total.float(), count, parts, dict.fromkeys(parts, count.double())), scores


def merged(reports: Sequence[LossReport]) -> LossReport:
    """The sum of reports, name by name. Source: docs/papers.md, one division per step."""
    parts: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for report in reports:
        for name, value in report.parts.items():
            parts[name] = parts[name] + value if name in parts else value
            counts[name] = counts[name] + report.counts[name] if name in counts else report.counts[name]
    total = torch.stack([report.total for report in reports]).sum()
    return LossReport(total, torch.stack([report.normaliser for report in reports]).sum(), parts, counts)


def joined(views: Sequence[Corruption]) -> Corruption:
    """Views of one batch as one view of twice as many rows."""
    names = ("tokens", "m2t", "t2t", "maskable", "rate", "elbo")
    return Corruption(*(torch.cat([getattr(view, name) for view in views]) for name in names))
