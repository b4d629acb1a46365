# The block ELBO of given text: exact by enumeration for small blocks, Monte Carlo with exact mask counts for larger.
# Entry points: block_elbo, exact_block_elbo, sampled_block_elbo, Estimate.
# All scored blocks are masked at once: given the clean prefix they are independent, so one forward serves every block.
# A document's first token stays visible and is not scored. Numbers are in nats, negated: an upper bound on the NLL.
"""Evidence bound of a block-diffusion model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hildanext.core.linear_cross_entropy import HeadOptions, weighted_cross_entropy
from hildanext.core.loss_report import scored_positions
from hildanext.core.noise import rank_in_unit, unit_sizes, units
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import Batch, Denoiser

LARGEST_EXACT = 8


@dataclass(frozen=True)
class Estimate:
    """nats: over `tokens` scored tokens; standard_error of nats: 0 where exact, NaN of one sample."""

    nats: float
    tokens: int
    standard_error: float

    def __add__(self, other: Estimate) -> Estimate:
        """The estimate of both texts together, their errors independent."""
        error = math.hypot(self.standard_error, other.standard_error)
        return Estimate(self.nats + other.nats, self.tokens + other.tokens, error)

    @property
    def nats_per_token(self) -> float:
        """nats / tokens; NaN without tokens."""
        return self.nats / self.tokens if self.tokens else math.nan


def block_elbo(model: Denoiser, batch: Batch, block: int, rng: torch.Generator, samples: int = 0) -> Estimate:
    """Negative ELBO of the batch at this block size. samples = 0: exact, block <= 8; else that many Monte-Carlo draws
    (block 1 is exact in any case). ValueError for exact with larger blocks. Source: recipe 7.1-7.3."""
    if block == 1 or samples == 0:
        return exact_block_elbo(model, batch, block)
    return sampled_block_elbo(model, batch, block, rng, samples)


def exact_block_elbo(model: Denoiser, batch: Batch, block: int) -> Estimate:
    """Sum over the 2^block - 1 mask patterns, one forward each, weight (|S|-1)! (s-|S|)! / s! in a block of s scored
    tokens. Source: recipe eq. 3, 7.2."""
    if not 1 <= block <= LARGEST_EXACT:
        raise ValueError(f"block_elbo: exact needs 1 <= block <= {LARGEST_EXACT}, got {block}; give samples")
    scored, unit, size = _layout(model, batch, block)
    starts = unit_sizes(unit, scored).cumsum(dim=1) - unit_sizes(unit, scored)
    ordinal = (scored.long().cumsum(dim=1) - 1 - starts.gather(1, unit)).clamp(min=0)
    nats = 0.0
    for pattern in range(1, 2**block):
        masked = scored & ((pattern >> ordinal) & 1).bool() & ((pattern >> size) == 0)
        nats += _weighted_nats(model, batch, block, masked, _pattern_weight(pattern, size))
    return Estimate(nats, int(scored.sum()), 0.0)


def _pattern_weight(pattern: int, size: Tensor) -> Tensor:
    count = torch.tensor(float(pattern.bit_count()), dtype=torch.float64)
    rest = (size.double() - count).clamp(min=0)
    return (torch.lgamma(count) + torch.lgamma(rest + 1) - torch.lgamma(size.double() + 1)).exp()


def sampled_block_elbo(model: Denoiser, batch: Batch, block: int, rng: torch.Generator, samples: int) -> Estimate:
    """Monte Carlo: in each block of s tokens n is stratified over 1..s, n positions are masked and weigh s/n. The
    standard error is that of independent draws, so it errs on the large side. Source: recipe 7.3."""
    scored, unit, size = _layout(model, batch, block)
    shift = row_uniforms(batch, rng, 1)[0].gather(1, unit)
    totals = torch.zeros(samples, dtype=torch.float64)
    for sample in range(samples):
        count = (((shift + sample / samples) % 1.0) * size).long() + 1
        masked = scored & (rank_in_unit(unit, scored, row_uniforms(batch, rng, 1)[0]) < count)
        totals[sample] = _weighted_nats(model, batch, block, masked, size / count.double())
    error = float(totals.std() / math.sqrt(samples)) if samples > 1 else math.nan
    return Estimate(float(totals.mean()), int(scored.sum()), error)


def _layout(model: Denoiser, batch: Batch, block: int) -> tuple[Tensor, Tensor, Tensor]:
    scored = scored_positions(batch, model.mask_id)
    unit = units("block", batch, block, getattr(model, "block_grid", "global"))
    return scored, unit, unit_sizes(unit, scored).gather(1, unit)


def _weighted_nats(model: Denoiser, batch: Batch, block: int, masked: Tensor, weight: Tensor) -> float:
    with torch.no_grad():
        features = model.noisy_features(batch.tokens.masked_fill(masked, model.mask_id), batch, block, masked)
        chosen, targets = weight[masked].to(features.dtype), batch.tokens[masked]
        _, scores = weighted_cross_entropy(features, model.head(), targets, chosen, HeadOptions(model.mask_id))
        return float((scores.nll.double() * weight[masked]).sum())
