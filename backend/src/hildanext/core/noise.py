# The forward process: which maskable tokens become [MASK] (m2t), which become random tokens (t2t), which stay (keep).
# Entry points: corrupt, plant, Corruption, units, maskable, mean_rate, allowed_tokens, cart_weights.
# A unit is what shares a mask rate: block, document or row. Rates are stratified within a row over its units, in a
# random order, from streams keyed by row id; so the masks do not depend on how rows are spread over ranks. In groups of
# blocks (Batch.groups) rates are a chain instead, never lower than that of the block before.
# Letters: B rows, L positions.
"""Mask rates, mask sets, replaced tokens, complementary views."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hildanext.config.noise import NoiseConfig
from hildanext.core.masks import block_ids
from hildanext.core.row_streams import row_uniforms
from hildanext.core.schedules import SCHEDULES
from hildanext.core.types import Batch, Denoiser

STREAMS = 7
TOP = 0.01
"""Share of the band of mask rates that a chain stays below its top (arXiv:2606.29215, rho)."""


@dataclass(frozen=True)
class Corruption:
    """One corrupted view. tokens [B, L] int64; m2t, t2t, maskable [B, L] bool: the positions masked, those
    replaced, where either may be; rate [B, L] float64: masking probability; elbo [B, L] float64: ELBO weight of a
    masked position, mean 1. Source: LLaDA2.0 arXiv:2512.15745 eq. 1 (m2t), LLaDA2.1 arXiv:2602.08676 sec. 3.1 (t2t)."""

    tokens: Tensor
    m2t: Tensor
    t2t: Tensor
    maskable: Tensor
    rate: Tensor
    elbo: Tensor

    @property
    def keep(self) -> Tensor:
        """[B, L] bool: maskable, neither masked nor replaced."""
        return self.maskable & ~self.m2t & ~self.t2t


def maskable(batch: Batch, mask_id: int) -> Tensor:
    """[B, L] bool: where noise may fall: `learn`, and not [MASK] in the clean text."""
    return batch.learn & (batch.tokens != mask_id)


def units(kind: str, batch: Batch, block: int, grid: str = "global") -> Tensor:
    """[B, L] int64: ids, from 0 in each row, of the contiguous pieces that share a mask rate. kind: block (cut at
    documents; block <= 0 or >= L: the document) | document | sequence."""
    length = batch.tokens.shape[1]
    if kind == "sequence":
        return torch.zeros_like(batch.docs)
    whole = kind == "document" or not 0 < block < length
    blocks = torch.zeros_like(batch.docs) if whole else block_ids(length, block, batch.docs, grid).expand_as(batch.docs)
    begins = torch.zeros_like(batch.docs)
    begins[:, 1:] = (batch.docs[:, 1:] != batch.docs[:, :-1]) | (blocks[:, 1:] != blocks[:, :-1])
    return begins.cumsum(dim=1)


def unit_sizes(unit: Tensor, chosen: Tensor) -> Tensor:
    """[B, L] int64: how many chosen [B, L] bool positions the unit with that id has (0 for ids not in use)."""
    return torch.zeros_like(unit).scatter_add_(1, unit, chosen.long())


@lru_cache(maxsize=8)
def allowed_tokens(vocabulary: int, forbidden: tuple[int, ...]) -> Tensor:
    """The ids random tokens are drawn from, ascending int64: 0..vocabulary-1 without the forbidden ones."""
    allowed = torch.ones(vocabulary, dtype=torch.bool)
    allowed[[token for token in forbidden if 0 <= token < vocabulary]] = False
    if not bool(allowed.any()):
        raise ValueError(f"noise: no token is left to draw from {vocabulary} ids")
    return allowed.nonzero()[:, 0]


def corrupt(
    config: NoiseConfig, model: Denoiser, batch: Batch, block: int, rng: torch.Generator
) -> tuple[Corruption, ...]:
    """One view of the batch, two when complementary: there the masked sets are disjoint and their union is all maskable
    positions. Positions that are not maskable never change. Source: LLaDA2.0
    arXiv:2512.15745 eq. 1, complement and band sec. 5.1; strata BD3-LM arXiv:2503.09573; T2T LLaDA2.1 arXiv:2602.08676
    sec. 3.1."""
    can, uniforms = maskable(batch, model.mask_id), row_uniforms(batch, rng, STREAMS)
    unit = units(config.unit, batch, block, model.block_grid)
    sizes = unit_sizes(unit, can)
    if batch.groups is None:
        rate, scale = _rates(config, unit, sizes, uniforms)
        masked, elbo = _draw(config, unit, can, rate, uniforms)
        elbo = scale / rate if elbo is None else elbo
    else:
        begins = batch.groups == block_ids(can.shape[1], block, batch.docs, model.block_grid)
        rate = _chain(config, unit, begins, uniforms)
        masked, elbo = _counted(config, unit, can, (rate * unit_sizes(unit, can).gather(1, unit)).floor(), uniforms)
    first = Corruption(batch.tokens, masked, torch.zeros_like(masked), can, rate, _capped(elbo, config))
    views = [_written(config, model, first, uniforms)]
    if config.complementary:
        other = _capped(scale / (1 - rate), config)
        second = Corruption(batch.tokens, can & ~masked, torch.zeros_like(masked), can, 1 - rate, other)
        views.append(_written(config, model, second, uniforms))
    return tuple(views)


def _capped(weight: Tensor, config: NoiseConfig) -> Tensor:
    return weight if config.cap is None else weight.clamp(max=config.cap)


def _rates(config: NoiseConfig, unit: Tensor, sizes: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    used = sizes > 0
    rank = uniforms[0].masked_fill(~used, 2.0).argsort(dim=1).argsort(dim=1)
    time = (uniforms[1][:, :1] + rank / used.sum(dim=1, keepdim=True).clamp(min=1)) % 1.0
    schedule, (low, high), (first, last) = SCHEDULES[config.schedule], *_band(config)
    time = first + (last - first) * time
    rate = schedule.rate(time, config.shape).clamp(low, high)
    scale = torch.ones_like(rate)
    if high > low:
        scale = schedule.slope(time, config.shape) * (last - first) / (high - low)
    return rate.gather(1, unit), scale.gather(1, unit)


def _band(config: NoiseConfig) -> tuple[tuple[float, float], tuple[float, float]]:
    high = min(config.high, 1 - config.minimum) if config.complementary else config.high
    band = torch.tensor([max(config.low, config.minimum), high], dtype=torch.float64)
    first, last = SCHEDULES[config.schedule].time(band, config.shape).tolist()
    return (float(band[0]), high), (first, last)


def mean_rate(config: NoiseConfig, points: int = 64) -> float:
    """The mask rate that `corrupt` draws in the mean, a probability; by the midpoint rule over the time. In groups that
    of one of middle size: a chain's k-th rate lies 1 - 2^-(k + 1) up the band in the mean."""
    (low, high), (first, last) = _band(config)
    if config.group > 1:
        size = (config.group + 2) // 2
        return low + (high - low) * (1 - TOP) * sum(1 - 0.5 ** (k + 2) for k in range(size)) / size
    time = first + (last - first) * (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return float(SCHEDULES[config.schedule].rate(time, config.shape).clamp(low, high).mean())


def _draw(
    config: NoiseConfig, unit: Tensor, can: Tensor, rate: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor | None]:
    if config.draw == "count":
        size = unit_sizes(unit, can).gather(1, unit)
        return _counted(config, unit, can, torch.maximum((rate * size).ceil(), torch.ones_like(rate)), uniforms)
    if config.tilt:
        rate = rate + config.tilt * (2 * _places(unit, can) - 1) * torch.minimum(rate, 1 - rate)
    return _runs(config, unit, can, can & (uniforms[2] < rate), uniforms), None


def _places(unit: Tensor, can: Tensor) -> Tensor:
    ordinal = can.long().cumsum(dim=1) - 1 - _unit_starts(unit, can)
    return (ordinal + 0.5) / unit_sizes(unit, can).gather(1, unit).clamp(min=1)


def _counted(config: NoiseConfig, unit: Tensor, can: Tensor, count: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    size = unit_sizes(unit, can).gather(1, unit)
    count = count.minimum(size)
    masked = can & (rank_in_unit(unit, can, uniforms[2]) < count)
    return _runs(config, unit, can, masked, uniforms), size / count.clamp(min=1)


def _runs(config: NoiseConfig, unit: Tensor, can: Tensor, masked: Tensor, uniforms: Tensor) -> Tensor:
    if config.span == 0:
        return masked
    return torch.where(_chosen_spans(config, unit, uniforms), _span(unit, can, masked, uniforms), masked)


def _chain(config: NoiseConfig, unit: Tensor, begins: Tensor, uniforms: Tensor) -> Tensor:
    first = torch.zeros_like(begins).scatter_(1, unit, begins)
    low, high = max(config.low, config.minimum), config.high
    high -= TOP * (high - low)
    floor, rates = uniforms.new_full(unit.shape[:1], low), []
    for number in range(int(unit.max()) + 1):
        fresh = low + (high - low) * uniforms[0][:, number]
        floor = torch.where(first[:, number], fresh, floor)
        floor = floor + uniforms[1][:, number] * (high - floor)
        rates.append(floor)
    return torch.stack(rates, dim=1).gather(1, unit)


def rank_in_unit(unit: Tensor, can: Tensor, uniform: Tensor) -> Tensor:
    """[B, L] int64: place of each position in its unit's random order by `uniform` [B, L]; the positions not in `can`
    come last. The first n of a unit are a uniform subset of size n. Source: docs/papers.md, exact counts."""
    order = (unit + torch.where(can, uniform / 2, 0.75)).argsort(dim=1)
    rank = torch.empty_like(unit).scatter_(1, order, torch.arange(unit.shape[1], device=unit.device).expand_as(unit))
    return rank - _unit_starts(unit, torch.ones_like(can))


def _unit_starts(unit: Tensor, chosen: Tensor) -> Tensor:
    sizes = unit_sizes(unit, chosen)
    return (sizes.cumsum(dim=1) - sizes).gather(1, unit)


def _chosen_spans(config: NoiseConfig, unit: Tensor, uniforms: Tensor) -> Tensor:
    return (uniforms[5] < config.span).gather(1, unit)


def _span(unit: Tensor, can: Tensor, masked: Tensor, uniforms: Tensor) -> Tensor:
    size, count = unit_sizes(unit, can).gather(1, unit), unit_sizes(unit, masked).gather(1, unit)
    ordinal = can.long().cumsum(dim=1) - 1 - _unit_starts(unit, can)
    start = (uniforms[6].gather(1, unit) * size).long()
    return can & ((ordinal - start) % size.clamp(min=1) < count)


def _written(config: NoiseConfig, model: Denoiser, view: Corruption, uniforms: Tensor) -> Corruption:
    t2t = view.maskable & ~view.m2t & (uniforms[3] < config.replace)
    m2t = view.m2t
    if config.type == "random_replace":
        t2t, m2t = m2t, torch.zeros_like(m2t)
    allowed = _allowed(config, model).to(view.tokens.device)
    drawn = _random_tokens(allowed, view.tokens, uniforms[4], config.may_draw_original)
    tokens = torch.where(t2t, drawn, view.tokens).masked_fill(m2t, model.mask_id)
    return Corruption(tokens, m2t, t2t, view.maskable, view.rate, view.elbo)


def _random_tokens(allowed: Tensor, original: Tensor, uniform: Tensor, may_draw_original: bool) -> Tensor:
    count = len(allowed)
    if may_draw_original or count == 1:
        return allowed[(uniform * count).long()]
    place = torch.searchsorted(allowed, original).clamp(max=count - 1)
    inside = allowed[place] == original
    index = (uniform * (count - inside.long())).long()
    return allowed[index + (inside & (index >= place)).long()]


def plant(config: NoiseConfig, model: Denoiser, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens [B, L] int64, wrong [B, L] bool, maskable [B, L] bool): the text with a share config.replace of its
    maskable tokens replaced by other allowed ones, and nothing masked. Source: docs/papers.md, T2T draw."""
    can, uniforms = maskable(batch, model.mask_id), row_uniforms(batch, rng, 2)
    allowed = _allowed(config, model).to(batch.tokens.device)
    drawn = _random_tokens(allowed, batch.tokens, uniforms[1], may_draw_original=False)
    wrong = can & (uniforms[0] < config.replace) & (drawn != batch.tokens)
    return torch.where(wrong, drawn, batch.tokens), wrong, can


def _allowed(config: NoiseConfig, model: Denoiser) -> Tensor:
    vocabulary = config.vocabulary or model.head().shape[0]
    return allowed_tokens(vocabulary, (*config.forbidden, model.mask_id))


def cart_weights(masked: Tensor, batch: Batch, block: int, decay: float, model: Denoiser) -> Tensor:
    """[B, L] float64: half the sum over the tokens j that a position sees unmasked, in its document, of
    decay (1 - decay)^(|i - j| - 1): at most 1, near 0 where nothing near it is known. masked [B, L] bool.
    Source: Dream arXiv:2508.15487, context-adaptive rescheduling; that later blocks are not seen is ours."""
    length = masked.shape[1]
    blocks = block_ids(length, block if 0 < block < length else length, batch.docs, model.block_grid)
    index = torch.arange(length, device=masked.device)
    distance = (index[:, None] - index[None, :]).abs().clamp(min=1)
    near = decay * (1 - decay) ** (distance - 1).double()
    seen = (blocks[:, None, :] < blocks[:, :, None]) | (
        (blocks[:, None, :] == blocks[:, :, None]) & ~masked[:, None, :]
    )
    seen = seen & (batch.docs[:, :, None] == batch.docs[:, None, :]) & (index[:, None] != index[None, :])
    return (near * seen).sum(dim=2) / 2
