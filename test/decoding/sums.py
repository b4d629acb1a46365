# A layer state that is no keys and values, and a model that lives by it: a decayed sum over all tokens before a block.
# Entry points: Sums (the state, as a recurrent layer needs one), Summing (the model), summing (a subject of it).
# Sums has a fixed size per slot: what a forward computed is kept aside until a commit says how much of it is past.
# The model works row by row and position by position, so that nothing but its tokens can change a row's numbers.
"""A second kind of layer state."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from decoding.reference import MASK
from decoding.subjects import Letters, Subject
from stand_in import StandIn
from torch import Tensor

from hildanext.decoding.store import PackedView, Place
from hildanext.models.meta import HildaMeta

WIDTH, DECAY, LONGEST = 6, 0.95, 512


class Sums:
    """past [S, D]: the sum at each slot's committed length; aside: slot -> start, sums [Q, D] behind each position."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.past = torch.zeros(slots, WIDTH)
        self.aside: dict[int, tuple[int, Tensor]] = {}

    def append(self, places: Sequence[Place], *new: Tensor) -> None:
        for slot, start, size, row, offset in places:
            self.aside[slot] = (start, new[0][row, offset : offset + size].clone())

    def commit(self, slot: int, length: int) -> None:
        start, sums = self.aside[slot]
        self.past[slot] = sums[length - start - 1]

    def move(self, source: int, target: int, length: int) -> None:
        self.past[target] = self.past[source]

    def release(self, slot: int) -> None:
        self.past[slot] = 0.0

    def grow(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        old, self.past = self.past, torch.zeros(slots, WIDTH)
        self.past[: len(lengths)] = old[: len(lengths)]

    def bytes(self) -> int:
        return self.past.numel() * self.past.element_size()


class Summing(StandIn):
    """logits(i) from position and token i, the mean of its block and the decayed sum of all tokens before it."""

    def __init__(self, **given: Any) -> None:
        super().__init__(mask_id=MASK, vocab_size=MASK + 1, **given)
        rng = torch.Generator().manual_seed(7)
        self.table = torch.randn(self.vocab_size, WIDTH, generator=rng)
        self.places = torch.randn(LONGEST, WIDTH, generator=rng)
        self.matrix = torch.randn(WIDTH, self.vocab_size, generator=rng)

    def __call__(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any = None, select: Any = None, layout: Any = None
    ) -> Tensor:
        """Logits at `select`, from the state of layer 0 and behind it."""
        embedded = self.table[tokens]
        hidden, sums = torch.zeros_like(embedded), torch.zeros_like(embedded)
        width = tokens.shape[1]
        for place in cache.places if cache else [Place(0, 0, width, row, 0) for row in range(len(tokens))]:
            own = slice(place.offset, place.offset + place.size)
            past = cache.state(0, Sums).past[place.slot] if cache else torch.zeros(WIDTH)
            ends = _ends(place, mask, cache)
            hidden[place.row, own], sums[place.row, own] = _scan(embedded[place.row, own], ends, past)
        if cache:
            cache.state(0, Sums).append(cache.places, sums)
        return torch.tanh((hidden + self.places[positions])[select]) @ self.matrix


def _ends(place: Place, mask: Tensor, cache: Any) -> list[int]:
    if isinstance(cache, PackedView):
        block, stop = cache.blocks[cache.places.index(place)], place.start + place.size
        return [min((i // block + 1) * block, stop) - place.start for i in range(place.start, stop)]
    seen: list[int] = mask[place.row, 0, : place.size].sum(dim=1).tolist()
    return [end - place.start for end in seen]


def _scan(embedded: Tensor, ends: list[int], past: Tensor) -> tuple[Tensor, Tensor]:
    hidden, sums, start, before = [], [], 0, past
    for index, end in enumerate(ends):
        if index >= start and (index == 0 or end != ends[index - 1]):
            start, before = index, past
        hidden.append(embedded[index] + embedded[start:end].mean(dim=0) + before)
        past = DECAY * past + embedded[index]
        sums.append(past)
    return torch.stack(hidden), torch.stack(sums)


def summing(takes_layout: bool) -> Subject:
    """A subject whose model keeps Sums; with takes_layout ragged windows are packed."""
    denoiser = Summing(takes_layout=takes_layout)
    return Subject(SimpleNamespace(denoiser=denoiser, tokenizer=Letters(), meta=HildaMeta()), None)
