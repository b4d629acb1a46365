# Likelihood of text: token NLL in one forward, autoregressive NLL, and the block ELBO, exact or by Monte Carlo.
# Entry points: token_nll, autoregressive_nll, block_elbo, exact_block_elbo, sampled_block_elbo, Estimate;
# mask_patterns (what the exact one sums over), drawn_terms (what the sampled one averages).
# Numbers are nats on scored_positions (learn, not a document's first), so that both kinds of model can be compared; the
# ELBO is negated, an upper bound on the NLL. Its blocks are masked all at once: given the clean prefix they are
# independent, so one forward serves every block.
"""Token likelihoods and the evidence bound of a block-diffusion model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hildanext.core.linear_cross_entropy import TokenScores, linear_cross_entropy
from hildanext.core.loss_report import autoregressive_scores, scored_positions
from hildanext.core.noise import rank_in_unit, unit_sizes, units
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import Batch, Denoiser

LARGEST_EXACT = 8


@dataclass(frozen=True)
class Estimate:
    """nats: over `tokens` scored tokens; standard_error of nats: 0 where exact, NaN of one sample; documents: (nats,
    tokens) of each document with a scored token, a document being what a row holds of it; without_ends: the same
    without the terms of end tokens, which an AR parent may never have seen."""

    nats: float
    tokens: int
    standard_error: float
    documents: tuple[tuple[float, int], ...] = ()
    without_ends: tuple[tuple[float, int], ...] = ()

    def __add__(self, other: Estimate) -> Estimate:
        """The estimate of both texts together, their errors independent."""
        error = math.hypot(self.standard_error, other.standard_error)
        documents, bare = self.documents + other.documents, self.without_ends + other.without_ends
        return Estimate(self.nats + other.nats, self.tokens + other.tokens, error, documents, bare)

    @property
    def nats_per_token(self) -> float:
        """nats / tokens; NaN without tokens."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def nats_per_token_without_ends(self) -> float:
        """The same over what is no end token."""
        tokens = sum(count for _, count in self.without_ends)
        return sum(nats for nats, _ in self.without_ends) / tokens if tokens else math.nan


def token_nll(
    model: Denoiser, noisy: Tensor, batch: Batch, block: int, select: Tensor, temperature: float = 1.0
) -> TokenScores:
    """Scores [n] of the clean tokens at `select` [B, L] bool given x_t = noisy [B, L], one forward over [x_t ; x_0];
    logits are divided by `temperature`. Differentiable; [MASK] has probability 0. Source: LLaDA2.0 arXiv:2512.15745
    eq. 1, the term under its sum."""
    features = model.noisy_features(noisy, batch, block, select) / temperature
    return linear_cross_entropy(features, model.head(), batch.tokens[select], model.mask_id)


def autoregressive_nll(model: Denoiser, batch: Batch, ends: Collection[int] = ()) -> Estimate:
    """NLL of the scored positions under the causal model; exact, no gradient. ends: ids of end tokens. Source:
    docs/papers.md, AR NLL on the same positions."""
    with torch.no_grad():
        report, scores = autoregressive_scores(model, batch)
    documents = _Documents(batch, scored_positions(batch, model.mask_id), ends)
    documents.add(documents.scored, scores.nll)
    return Estimate(float(report.parts["autoregressive"]), int(report.normaliser), 0.0, *documents.found())


class _Documents:
    """Sums of nats by document (a row's tokens of one number in batch.docs), with and without end tokens."""

    def __init__(self, batch: Batch, scored: Tensor, ends: Collection[int]) -> None:
        width = int(batch.docs.max()) + 1
        self.number = batch.docs + width * torch.arange(len(batch.docs), device=batch.docs.device)[:, None]
        self.scored, size = scored, width * len(batch.docs)
        self.text = ~torch.isin(batch.tokens, torch.tensor(sorted(ends), dtype=torch.long, device=batch.tokens.device))
        self.nats, self.bare = torch.zeros(2, size, dtype=torch.float64, device=batch.docs.device)
        self.tokens = self.number[scored].bincount(minlength=size)
        self.words = self.number[scored & self.text].bincount(minlength=size)

    def add(self, select: Tensor, nats: Tensor) -> None:
        """nats [n] of the positions at select [B, L] bool."""
        self.nats.index_add_(0, self.number[select], nats.double())
        self.bare.index_add_(0, self.number[select], nats.double() * self.text[select])

    def found(self, samples: int = 1) -> tuple[tuple[tuple[float, int], ...], ...]:
        """(nats / samples, tokens) of each document with a scored token; the same of what is no end token."""
        sums = ((self.nats, self.tokens), (self.bare, self.words))
        pairs = (zip((nats / samples).tolist(), tokens.tolist(), strict=True) for nats, tokens in sums)
        return tuple(tuple((nats, count) for nats, count in each if count) for each in pairs)


def block_elbo(
    model: Denoiser, batch: Batch, block: int, rng: torch.Generator, samples: int = 0, ends: Collection[int] = ()
) -> Estimate:
    """Negative ELBO of the batch at this block size. samples = 0: exact, up to 8 scored tokens of a block; else that
    many Monte-Carlo draws (block 1 is exact in any case); ends: ids of end tokens. ValueError for exact with more.
    Source: docs/papers.md, Likelihood."""
    if block == 1 or samples == 0:
        return exact_block_elbo(model, batch, block, ends)
    return sampled_block_elbo(model, batch, block, rng, samples, ends)


def exact_block_elbo(model: Denoiser, batch: Batch, block: int, ends: Collection[int] = ()) -> Estimate:
    """Sum over the 2^s - 1 mask patterns, s the most scored tokens of a block, one forward each, weight
    (|S|-1)! (s-|S|)! / s!: the average over all orders of filling it. Source: docs/papers.md, block ELBO,
    enumeration."""
    scored, unit, _ = _layout(model, batch, block)
    nats, documents = 0.0, _Documents(batch, scored, ends)
    for masked, weight in mask_patterns(scored, unit):
        found = _weighted_nats(model, batch, block, masked, weight)
        documents.add(masked, found)
        nats += float(found.sum())
    return Estimate(nats, int(scored.sum()), 0.0, *documents.found())


def mask_patterns(scored: Tensor, unit: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(masked [B, L] bool, weight [B, L] float64) of every non-empty subset of each unit's scored positions, all units
    at once: the sum of weight times nll is the average over all orders. ValueError for units over 8 tokens. Source:
    docs/papers.md, block ELBO, enumeration."""
    size = unit_sizes(unit, scored).gather(1, unit)
    most = int(size[scored].max()) if bool(scored.any()) else 0
    if most > LARGEST_EXACT:
        raise ValueError(f"block_elbo: exact needs at most {LARGEST_EXACT} tokens of a block, got {most}; give samples")
    starts = unit_sizes(unit, scored).cumsum(dim=1) - unit_sizes(unit, scored)
    ordinal = (scored.long().cumsum(dim=1) - 1 - starts.gather(1, unit)).clamp(min=0)
    for pattern in range(1, 2**most):
        masked = scored & ((pattern >> ordinal) & 1).bool() & ((pattern >> size) == 0)
        yield masked, _pattern_weight(pattern, size)


def _pattern_weight(pattern: int, size: Tensor) -> Tensor:
    count = torch.tensor(float(pattern.bit_count()), dtype=torch.float64)
    rest = (size.double() - count).clamp(min=0)
    return (torch.lgamma(count) + torch.lgamma(rest + 1) - torch.lgamma(size.double() + 1)).exp()


def sampled_block_elbo(
    model: Denoiser, batch: Batch, block: int, rng: torch.Generator, samples: int, ends: Collection[int] = ()
) -> Estimate:
    """Monte Carlo: in each block of s tokens n is stratified over 1..s, n positions are masked and weigh s/n. The
    standard error is that of independent draws, so it errs on the large side.
    Source: LLaDA arXiv:2502.09992 sec. 2.4 (exact counts); strata are ours."""
    scored, _, _ = _layout(model, batch, block)
    totals, documents = torch.zeros(samples, dtype=torch.float64), _Documents(batch, scored, ends)
    for sample, (masked, found) in enumerate(drawn_terms(model, batch, block, rng, samples)):
        documents.add(masked, found)
        totals[sample] = float(found.sum())
    error = float(totals.std() / math.sqrt(samples)) if samples > 1 else math.nan
    return Estimate(float(totals.mean()), int(scored.sum()), error, *documents.found(samples))


def drawn_terms(
    model: Denoiser, batch: Batch, block: int, rng: torch.Generator, samples: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The draws of sampled_block_elbo, a forward each: (masked [B, L] bool, their weighted nats [n] float64), whose sum
    over a draw is an estimate of the bound. Source: LLaDA arXiv:2502.09992 sec. 2.4."""
    scored, unit, size = _layout(model, batch, block)
    shift = row_uniforms(batch, rng, 1)[0].gather(1, unit)
    for sample in range(samples):
        count = (((shift + sample / samples) % 1.0) * size).long() + 1
        masked = scored & (rank_in_unit(unit, scored, row_uniforms(batch, rng, 1)[0]) < count)
        yield masked, _weighted_nats(model, batch, block, masked, size / count.double())


def _layout(model: Denoiser, batch: Batch, block: int) -> tuple[Tensor, Tensor, Tensor]:
    scored = scored_positions(batch, model.mask_id)
    unit = units("block", batch, block, model.block_grid)
    return scored, unit, unit_sizes(unit, scored).gather(1, unit)


def _weighted_nats(model: Denoiser, batch: Batch, block: int, masked: Tensor, weight: Tensor) -> Tensor:
    with torch.no_grad():
        scores = token_nll(model, batch.tokens.masked_fill(masked, model.mask_id), batch, block, masked)
    return scores.nll.double() * weight[masked]
