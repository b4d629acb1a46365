# Likelihoods of many short endings, each behind a context of its own: read left to right, or bounded by the block ELBO.
# Entry points: Ending (of), causal, bounds, Bound; causal_tokens.
# Endings of one context share its tokens in a row (measure/branches.py), and a draw of noise is a copy of one block:
# it costs a block, not the text. A block of few scored tokens is enumerated and has no noise.
"""Scoring endings."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator

from hildanext.core.linear_cross_entropy import linear_cross_entropy
from hildanext.core.row_streams import row_seeds
from hildanext.core.types import Denoiser
from hildanext.measure.branches import Branches, Scored, visibility
from hildanext.measure.scoring import pair_batch
from hildanext.models.denoiser import HFDenoiser, hugging_face

POSITIONS = 2048
"""Positions of a forward, copies and padding included."""
WIDEST = 640
"""Positions of a row of several endings: attention costs their square."""


@dataclass(frozen=True)
class Ending:
    """Token ids of a context with its ending, the index of the ending's first token, and the ending's characters."""

    ids: tuple[int, ...]
    first: int
    characters: int

    @classmethod
    def of(cls, loaded: Any, context: str | Sequence[int], text: str) -> Ending:
        """A text behind a context (a text, or ids as they are); a context beyond the window loses its beginning."""
        batch = pair_batch(loaded.tokenizer, context, text, loaded.denoiser.window)
        return cls(tuple(batch.tokens[0].tolist()), int((~batch.learn[0]).sum()), len(text))

    def blocks(self, block: int, but: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(index of a block, its scored positions) for each block that has one; tokens `but` are not scored."""
        for number in range(self.first // block, -(-len(self.ids) // block)):
            span = range(max(self.first, number * block), min(len(self.ids), (number + 1) * block))
            if places := tuple(place for place in span if self.ids[place] != but):
                yield number, places


@dataclass(frozen=True)
class Bound:
    """An upper bound on an ending's nats; its standard error in nats, from pairs of draws as if independent (0 where
    exact, NaN of a single pair); exact: whether all its blocks were enumerated; tokens: the terms of each position that
    is scored, whose sum is nats."""

    nats: float
    standard_error: float
    exact: bool
    tokens: Mapping[int, float] = field(default_factory=dict)


def causal(denoiser: Denoiser, endings: Sequence[Ending], positions: int = POSITIONS) -> list[float]:
    """-log p(ending | context) of each, nats, under the model read left to right, `positions` to a forward."""
    return [math.fsum(own.values()) for own in causal_tokens(denoiser, endings, positions)]


def causal_tokens(denoiser: Denoiser, endings: Sequence[Ending], positions: int = POSITIONS) -> list[dict[int, float]]:
    """As causal, by position of each ending's tokens."""
    model, rows = hugging_face(denoiser), []
    for group in _groups(endings, 1):
        row = Branches(1, endings[group[0]].ids[: endings[group[0]].first])
        for index in group:
            own = endings[index]
            place = row.branch(own.ids)
            for at in range(own.first, len(own.ids)):
                if own.ids[at] != model.mask_id:
                    row.scored.append(Scored(place(at - 1), own.ids[at], 1.0, (index, 0, 0), at))
        rows.append(row)
    found: list[dict[int, float]] = [{} for _ in endings]
    for one, nats in _nats(model, rows, positions):
        found[one.key[0]][one.place] = nats
    return found


def bounds(
    denoiser: Denoiser, endings: Sequence[Ending], block: int, samples: int, exact: int, positions: int = POSITIONS
) -> list[Bound]:
    """A bound on the nats of each ending at this block size. A block of at most `exact` scored tokens is enumerated,
    another drawn `samples` times, in pairs; `positions` to a forward. Source: docs/papers.md, block ELBO."""
    model = hugging_face(denoiser)
    if block == 1 and model.shift == "clean":
        # a block's first token is read from the clean text: at block 1 all are
        found = causal_tokens(denoiser, endings, positions)
        return [Bound(math.fsum(own.values()), 0.0, True, own) for own in found]
    counted, rows = [True] * len(endings), []
    for group in _groups(endings, block):
        row = Branches(block, endings[group[0]].ids[: endings[group[0]].first // block * block])
        for index in group:
            counted[index] = _copied(row, model, index, endings[index], (samples, exact))
        rows.append(row)
    sums: dict[tuple[int, int, int], float] = {}
    tokens: list[dict[int, float]] = [{} for _ in endings]
    for one, nats in _nats(model, rows, positions):
        sums[one.key] = sums.get(one.key, 0.0) + nats
        own = tokens[one.key[0]]
        own[one.place] = own.get(one.place, 0.0) + nats
    return [_bound(*each) for each in zip(_by_block(sums, len(endings)), counted, tokens, strict=True)]


def _copied(row: Branches, model: HFDenoiser, index: int, own: Ending, how: tuple[int, int]) -> bool:
    """Noisy copies of the ending's blocks in its row; whether all are enumerated."""
    block, whole = row.block, True
    place = row.branch(own.ids)
    for number, places in own.blocks(block, model.mask_id):
        seed = row_seeds(zlib.crc32(repr(own.ids[: own.first]).encode()), [number])[0]
        found = list(patterns(len(places), *how, torch.Generator().manual_seed(seed)))
        whole = whole and found[0].pair < 0
        start, stop = number * block, min(len(own.ids), (number + 1) * block)
        for each in found:
            masked = {places[at] for at in each.masked}
            noisy = [model.mask_id if at in masked else own.ids[at] for at in range(start, stop)]
            first = row.copy(noisy, start)
            for at in sorted(masked):
                before = place(at - 1) if at == start else first + at - start - 1
                source = first + at - start if model.shift == "none" else before
                row.scored.append(Scored(source, own.ids[at], each.weight, (index, number, each.pair), at))
    return whole


@dataclass(frozen=True)
class Pattern:
    """Which of a block's scored tokens are masked together, the weight of their nats, and the pair of draws it belongs
    to (-1: an enumeration)."""

    masked: tuple[int, ...]
    weight: float
    pair: int


def patterns(size: int, samples: int, exact: int, rng: Generator) -> Iterator[Pattern]:
    """The mask patterns of a block of `size` scored tokens, whose weighted nats add up to the bound: all of them up to
    `exact` tokens or where they are no more than the draws, else `samples` in pairs that cover every token: of a random
    order the first n are masked, then the last size + 1 - n, n stratified over 1..size.
    Source: docs/papers.md, exact counts and endings in pairs."""
    if size <= exact or 2**size - 1 <= samples:
        for number in range(1, 2**size):
            masked = tuple(at for at in range(size) if number >> at & 1)
            ways = math.factorial(len(masked) - 1) * math.factorial(size - len(masked))
            yield Pattern(masked, ways / math.factorial(size), -1)
        return
    shift = float(torch.rand((), generator=rng))
    for pair in range(samples // 2):
        time, order = (pair + shift) / samples, torch.randperm(size, generator=rng).tolist()
        for count, part in ((int(time * size) + 1, order), (int((1 - time) * size) + 1, order[::-1])):
            count = min(count, size)
            yield Pattern(tuple(part[:count]), size / count / samples, pair)


def _groups(endings: Sequence[Ending], block: int) -> list[list[int]]:
    """Indices of endings that begin with the same whole blocks of context, as many as a row may hold unnoised."""
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for index, one in enumerate(endings):
        shared = one.first // block * block
        held = groups.setdefault(one.ids[:shared], [[]])
        if held[-1] and shared + sum(len(endings[at].ids) - shared for at in held[-1]) * (1 + 4 * (block > 1)) > WIDEST:
            held.append([])
        held[-1].append(index)
    return [group for held in groups.values() for group in held]


@torch.no_grad()
def _nats(model: HFDenoiser, rows: Sequence[Branches], positions: int) -> Iterator[tuple[Scored, float]]:
    """Everything scored in the rows, with its weighted nats."""
    for part in _batches(sorted(rows, key=lambda row: len(row.tokens)), positions):
        tokens, places, mask = visibility(part, model.mask_id, model.device)
        hidden = model.body(tokens, places, mask)
        asked = [(number, one) for number, row in enumerate(part) for one in row.scored]
        at = torch.tensor([(number, one.source) for number, one in asked], device=model.device).T
        wanted = torch.tensor([one.token for _, one in asked], device=model.device)
        nats = linear_cross_entropy(hidden[at[0], at[1]], model.head(), wanted, model.mask_id).nll.tolist()
        yield from ((one, one.weight * each) for (_, one), each in zip(asked, nats, strict=True))


def _batches(rows: Iterable[Branches], positions: int) -> Iterator[list[Branches]]:
    part: list[Branches] = []
    for row in rows:
        if part and (len(part) + 1) * len(row.tokens) > positions:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _by_block(sums: dict[tuple[int, int, int], float], count: int) -> list[dict[int, dict[int, float]]]:
    found: list[dict[int, dict[int, float]]] = [{} for _ in range(count)]
    for (index, number, pair), nats in sums.items():
        found[index].setdefault(number, {})[pair] = nats
    return found


def _bound(blocks: dict[int, dict[int, float]], exact: bool, tokens: dict[int, float]) -> Bound:
    nats, variance = 0.0, 0.0
    for pairs in blocks.values():
        each = list(pairs.values())
        nats += math.fsum(each)
        if -1 not in pairs:
            mean = math.fsum(each) / len(each)
            spread = math.fsum((one - mean) ** 2 for one in each) * len(each)
            variance += spread / (len(each) - 1) if len(each) > 1 else math.nan
    return Bound(nats, math.sqrt(variance), exact, tokens)
