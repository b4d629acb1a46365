# What of an answer is masked and scored when its likelihood is compared between models: bounds, rounds, sampled steps.
# Entry points: Played, elbo_views, exact_views, round_views, step_views, support_ids, log_probabilities, by_row.
# A view is one forward: `m2t` and `t2t` are its scored positions, `elbo` their weights, and the likelihood is the MEAN
# over the views of each row's weighted sum. Theta, old and reference score the same views, drawn once from a private
# generator. Letters: B rows, L positions, R rounds of a block, n scored positions of a view.
"""Views that a likelihood of answers is estimated from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hildanext.config.noise import NoiseConfig
from hildanext.core.head import EXCLUDED, float_logits, kept_scores, row_slices, same_dtype
from hildanext.core.likelihood import mask_patterns, token_nll
from hildanext.core.noise import Corruption, maskable, plant, rank_in_unit, unit_sizes, units
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import Batch, Denoiser

LEAST_SURPRISAL = 0.05


@dataclass(frozen=True)
class Played:
    """Decoded answers. batch: learn marks what was sampled and counts; canvas [B, L] int64: every token as decoded,
    also behind the end; steps [B, L] int64: the forward of its block that filled a position, -1 where it was given;
    surprisal [B, L]: -log p of the token there, nats; advantage [B]; kept [B] bool; temperature, top_k, top_p: of the
    draws."""

    batch: Batch
    canvas: Tensor
    steps: Tensor
    surprisal: Tensor
    advantage: Tensor
    kept: Tensor
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def given(cls, batch: Batch) -> Played:
        """Texts that nobody decoded: no rounds, no advantage, all kept."""
        rows, nothing = len(batch.tokens), torch.zeros_like(batch.tokens, dtype=torch.float64)
        kept = torch.ones(rows, dtype=torch.bool, device=batch.tokens.device)
        return cls(batch, batch.tokens, torch.full_like(batch.tokens, -1), nothing, nothing[:, 0], kept)

    @property
    def cut(self) -> bool:
        """Whether some tokens could not be drawn."""
        return self.top_k > 0 or self.top_p < 1

    def to(self, device: torch.device | str) -> Played:
        """The same on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if hasattr(value, "to")}
        return replace(self, **moved)


def elbo_views(
    model: Denoiser, batch: Batch, unit: Tensor, rng: torch.Generator, draws: int, coupled: bool
) -> tuple[Corruption, ...]:
    """`draws` views of the bound, each with its complement where coupled: in each unit [B, L] of s tokens l are masked
    and weigh (s+1)/l, l on the grid 0..s, the rest (s+1)/(s-l) in the complement; alone s/l, l on 1..s. Counts are
    stratified over draws and units. Any units that blocks make up give the same mean. Source: docs/papers.md, count
    grid."""
    can = maskable(batch, model.mask_id)
    by_unit = unit_sizes(unit, can)
    size, used = by_unit.gather(1, unit), by_unit > 0
    place = ((used.long().cumsum(1) - 1) / used.sum(1, keepdim=True).clamp(min=1)).gather(1, unit)
    shift, views = row_uniforms(batch, rng, 1)[0][:, :1], list[Corruption]()
    for draw in range(draws):
        time = (shift + (draw + place) / draws) % 1.0
        count = (time * (size + 1)).long() if coupled else (time * size).long() + 1
        first = can & (rank_in_unit(unit, can, row_uniforms(batch, rng, 1)[0]) < count)
        whole = (size + 1 if coupled else size).double()
        views.append(_masked(model, batch, first, whole / count.clamp(min=1)))
        if coupled:
            views.append(_masked(model, batch, can & ~first, whole / (size - count).clamp(min=1)))
    return tuple(views)


def exact_views(model: Denoiser, batch: Batch, block: int) -> tuple[Corruption, ...]:
    """Every mask pattern of every block, whose mean is the bound itself. ValueError over 8 tokens of a block."""
    can, unit = maskable(batch, model.mask_id), units("block", batch, block, model.block_grid)
    found = list(mask_patterns(can, unit))
    return tuple(_masked(model, batch, masked, weight * len(found)) for masked, weight in found)


def with_edits(
    model: Denoiser, batch: Batch, view: Corruption, noise: NoiseConfig, weight: float, rng: torch.Generator
) -> Corruption:
    """The view with a share noise.replace of its visible learned tokens replaced, to be predicted at `weight` each."""
    planted, wrong, _ = plant(noise, model, batch, rng)
    t2t = wrong & ~view.m2t & (view.tokens == batch.tokens)
    tokens = torch.where(t2t, planted, view.tokens)
    return replace(view, tokens=tokens, t2t=t2t, elbo=torch.where(t2t, weight, view.elbo))


def round_views(model: Denoiser, played: Played) -> tuple[Corruption, ...]:
    """One view a round: every block as it was before its j-th forward, the tokens that forward filled scored. Each
    learned token is in exactly one. Source: TraceRL arXiv:2509.06949."""
    last = int(played.steps[played.batch.learn].max()) if bool(played.batch.learn.any()) else -1
    weight = torch.full_like(played.surprisal, float(last + 1))
    return tuple(_before(model, played, torch.full_like(played.steps, number), weight) for number in range(last + 1))


def step_views(
    model: Denoiser, played: Played, unit: Tensor, rng: torch.Generator, draws: int, by_surprisal: bool
) -> tuple[Corruption, ...]:
    """`draws` views of one sampled round for every block, weighing 1/q: the mean is the sum over all rounds. q: uniform
    over the rounds with a learned token, or in proportion to its tokens' surprisal; stratified over the draws. Source:
    AGRPO arXiv:2510.04019; one round of each block in one forward, and surprisal for entropy, are ours."""
    learn, steps = played.batch.learn, played.steps
    rounds, width = max(1, int(steps.max()) + 1), unit.shape[1]
    cell = unit * rounds + steps.clamp(min=0)
    own = (played.surprisal.clamp(min=LEAST_SURPRISAL) if by_surprisal else torch.ones_like(played.surprisal)) * learn
    mass = torch.zeros(len(unit), width * rounds, dtype=torch.float64, device=unit.device).scatter_add_(1, cell, own)
    mass = mass.view(len(unit), width, rounds)
    share = mass if by_surprisal else (mass > 0).double()
    share = share / share.sum(-1, keepdim=True).clamp(min=1e-12)
    shift, views = row_uniforms(played.batch, rng, 1)[0][..., None], list[Corruption]()
    for draw in range(draws):
        chosen = _drawn_rounds(share, (shift + draw / draws) % 1.0)
        weight = 1 / share.gather(2, chosen).clamp(min=1e-12)
        number, scale = (found[..., 0].gather(1, unit) for found in (chosen, weight))
        views.append(_before(model, played, number, scale))
    return tuple(views)


def _drawn_rounds(share: Tensor, uniform: Tensor) -> Tensor:
    beyond = (share.cumsum(-1) <= uniform).sum(-1, keepdim=True)
    last = ((share > 0) * torch.arange(share.shape[-1], device=share.device)).amax(-1, keepdim=True)
    return torch.minimum(beyond, last)


def _masked(model: Denoiser, batch: Batch, masked: Tensor, weight: Tensor) -> Corruption:
    tokens, can = batch.tokens.masked_fill(masked, model.mask_id), maskable(batch, model.mask_id)
    return Corruption(tokens, masked, torch.zeros_like(masked), can, 1 / weight.clamp(min=1.0), weight.double())


def _before(model: Denoiser, played: Played, number: Tensor, weight: Tensor) -> Corruption:
    tokens = played.canvas.masked_fill(played.steps >= number, model.mask_id)
    scored = played.batch.learn & (played.steps == number)
    return Corruption(tokens, scored, torch.zeros_like(scored), played.batch.learn, torch.ones_like(weight), weight)


def support_ids(model: Denoiser, played: Played, block: int, view: Corruption) -> Tensor:
    """[n, k] int32: what could be drawn at the view's scored positions, likeliest first, -1 behind the last; the token
    that was is among them. One forward without a gradient."""
    scored = view.m2t | view.t2t
    with torch.no_grad():
        features, head = same_dtype(model.noisy_features(view.tokens, played.batch, block, scored), model.head())
        drawn, found = played.batch.tokens[scored][:, None], list[Tensor]()
        for rows in row_slices(len(features), len(head), copies=4):
            scores = float_logits(features[rows], head, model.mask_id)
            kept = kept_scores(scores, played.temperature, played.top_k, played.top_p) > EXCLUDED / 2
            kept = kept.scatter(1, drawn[rows], True)
            best = scores.masked_fill(~kept, -torch.inf).topk(int(kept.sum(dim=1).max()), dim=1)
            found.append(best.indices.masked_fill(best.values == -torch.inf, -1).int())
    width = max((one.shape[1] for one in found), default=1)
    padded = [torch.nn.functional.pad(one, (0, width - one.shape[1]), value=-1) for one in found]
    return torch.cat(padded) if padded else drawn.new_zeros(0, 1).int()


def log_probabilities(
    model: Denoiser, batch: Batch, block: int, view: Corruption, temperature: float = 1.0, support: Tensor | None = None
) -> Tensor:
    """[n] log p of the tokens at the view's scored positions, row by row; differentiable, one forward. support [n, k]:
    ids that alone have a probability, -1 for none; None: all."""
    scored = view.m2t | view.t2t
    if support is None:
        return -token_nll(model, view.tokens, batch, block, scored, temperature).nll
    features, head = same_dtype(model.noisy_features(view.tokens, batch, block, scored) / temperature, model.head())
    targets, mask_id = batch.tokens[scored], model.mask_id
    parts = [
        checkpoint(_within, features[rows], head, targets[rows], support[rows], mask_id, use_reentrant=False)
        for rows in row_slices(len(features), len(head), copies=2)
    ]
    return torch.cat(parts) if parts else features.new_zeros(0)


def _within(features: Tensor, head: Tensor, targets: Tensor, ids: Tensor, mask_id: int) -> Tensor:
    logits = float_logits(features, head, mask_id).gather(1, ids.long().clamp(min=0))
    logs = logits.masked_fill(ids < 0, EXCLUDED).log_softmax(dim=1)
    return logs.masked_fill(ids != targets[:, None], 0.0).sum(dim=1)


def by_row(view: Corruption, values: Tensor) -> Tensor:
    """[B]: the weighted sums over each row of values [n] at the view's scored positions."""
    scored = view.m2t | view.t2t
    rows = scored.nonzero()[:, 0]
    weighted = values * view.elbo[scored].to(values.dtype)
    return weighted.new_zeros(len(scored)).index_add(0, rows, weighted)
