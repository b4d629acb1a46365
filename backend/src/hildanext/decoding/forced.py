# A known text decoded by a policy: in which forward each of its tokens would be filled, and whether rightly.
# Entry points: forced, Forced.
# Where the text is known the blocks of a row are independent, each behind the text before it, so one forward over
# [x_t ; x_0] is a step of every block of every row. What is filled in is the text's token, whatever the model says.
# Letters: B rows, L positions.
"""Forced decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hildanext.core.noise import maskable, units
from hildanext.core.types import Batch, Canvas, Denoiser, Stats
from hildanext.decoding.policy import BlockPolicy
from hildanext.decoding.randomness import CHOICE, uniform
from hildanext.decoding.statistics import Sampling, statistics

GREEDY = Sampling()


@dataclass(frozen=True)
class Forced:
    """steps [B, L] int64: the forward of its block, from 0, in which a position was filled, -1 where it was given;
    right [B, L] bool: the model's own choice was the text's token; probability [B, L] float32 of that choice; unit
    [B, L] int64: block ids; looks: (masked [B, L] bool, entropy [B, L]) before each forward, where asked for."""

    steps: Tensor
    right: Tensor
    probability: Tensor
    unit: Tensor
    looks: tuple[tuple[Tensor, Tensor], ...] = ()

    def forwards(self) -> Tensor:
        """[B] int64: forwards of a decoder that does one block after the other."""
        last = torch.zeros_like(self.unit).scatter_reduce_(1, self.unit, self.steps + 1, "amax")
        return last.sum(dim=1)

    def tokens(self) -> Tensor:
        """[B] int64: positions filled."""
        return (self.steps >= 0).sum(dim=1)


@dataclass
class _Block:
    place: tuple[int, slice]
    masks: int
    history: tuple[tuple[Tensor, Tensor], ...] = ()
    looks: int = field(default=0)


@torch.no_grad()
def forced(
    model: Denoiser, batch: Batch, block: int, policy: BlockPolicy, seed: int = 0, entropies: bool = False
) -> Forced:
    """Decode the learned positions of a batch, greedily, the finished text being the batch's own; edits are left out,
    there being nothing to edit. Source: d3LLM arXiv:2601.07568, pseudo-trajectories; that they follow a given text is
    ours."""
    can = maskable(batch, model.mask_id).cpu()
    unit = units("block", batch, block, model.block_grid).cpu()
    clean, rows = batch.tokens.cpu(), batch.ids or tuple(range(len(can)))
    state = clean.masked_fill(can, model.mask_id)
    steps, right = torch.full_like(clean, -1), torch.zeros_like(can)
    probability = torch.zeros(clean.shape)
    blocks, looks = list(_blocks(unit, can)), list[tuple[Tensor, Tensor]]()
    needs = policy.needs | ({"entropy"} if entropies else frozenset())
    while bool((hidden := (state == model.mask_id) & can).any()):
        stats = _statistics(model, state, batch, block, hidden, (needs, policy))
        if entropies and stats.entropy is not None:
            looks.append((hidden, stats.entropy))
        for one in [one for one in blocks if bool(hidden[one.place].any())]:
            row, span = one.place
            drawn = _choices(seed, rows[row], span, one.looks) if policy.random else None
            canvas = Canvas(state[row, span], can[row, span], model.mask_id, one.looks, one.masks, drawn, one.history)
            seen = _part(stats, one.place)
            filled = policy.step(seen, canvas).unmasked & hidden[row, span]
            if one.looks + 1 >= policy.forwards(one.masks):
                filled = hidden[row, span]
            one.history += ((seen.best, seen.probability),) if policy.remembers else ()
            places = torch.arange(span.start, span.stop)[filled]
            steps[row, places], right[row, places] = one.looks, (seen.best == clean[row, span])[filled]
            probability[row, places] = seen.probability[filled]
            state[row, places] = clean[row, places]
            one.looks += 1
    return Forced(steps, right, probability, unit, tuple(looks))


def _blocks(unit: Tensor, can: Tensor) -> Iterator[_Block]:
    for row, (own, open_) in enumerate(zip(unit, can, strict=True)):
        counts = own.bincount()
        stops = counts.cumsum(0).tolist()
        for stop, count in zip(stops, counts.tolist(), strict=True):
            span = slice(stop - count, stop)
            if masks := int(open_[span].sum()):
                yield _Block((row, span), masks)


def _choices(seed: int, row: int, span: slice, step: int) -> Tensor:
    return uniform(seed, row, torch.arange(span.start, span.stop), step, CHOICE)


def _statistics(
    model: Denoiser, state: Tensor, batch: Batch, block: int, hidden: Tensor, asked: tuple[frozenset[str], BlockPolicy]
) -> Stats:
    device = batch.tokens.device
    features = model.noisy_features(state.to(device), batch, block, hidden.to(device))
    found = statistics(features @ model.head().T, model.mask_id, GREEDY, asked[0], None, None)
    zero = torch.zeros(state.shape)
    return Stats(
        _spread(found.best, hidden, state), _spread(found.probability, hidden, zero),
        None if found.entropy is None else _spread(found.entropy, hidden, zero),
        None if found.second is None else _spread(found.second, hidden, zero),
    )  # fmt: skip


def _spread(values: Tensor, hidden: Tensor, otherwise: Tensor) -> Tensor:
    return torch.masked_scatter(otherwise, hidden, values.cpu().to(otherwise))


def _part(stats: Stats, place: tuple[int, slice]) -> Stats:
    return Stats(
        stats.best[place], stats.probability[place], None if stats.entropy is None else stats.entropy[place],
        None if stats.second is None else stats.second[place],
    )  # fmt: skip
