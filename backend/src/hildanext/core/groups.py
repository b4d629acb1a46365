# Groups of blocks for training: how a row's text is cut into windows of several blocks that are noised together.
# Entry points: grouped (a batch with groups drawn), systematic, repaired (sizes of consecutive groups).
# One layout per row and step. Groups hold blocks with something to learn only and never cross a document; every other
# block stays alone, so a prompt is seen clean, as the decoder shows it.
"""Layouts of groups of blocks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch

from hildanext.config.noise import NoiseConfig
from hildanext.core.masks import block_ids
from hildanext.core.noise import maskable, unit_sizes, units
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import Batch, Denoiser


def grouped(config: NoiseConfig, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> Batch:
    """The batch with groups of at most config.group blocks, one layout per row; the batch itself, and nothing drawn,
    where groups are off or the block is the row. Source: arXiv:2606.29215, multi-block teacher forcing."""
    if config.group == 1 or not 0 < block < batch.tokens.shape[1]:
        return batch
    uniforms = row_uniforms(batch, rng, 3).cpu()
    blocks = block_ids(batch.tokens.shape[1], block, batch.docs, model.block_grid).expand_as(batch.docs)
    unit = units("block", batch, block, model.block_grid)
    learned = (unit_sizes(unit, maskable(batch, model.mask_id)).gather(1, unit) > 0).tolist()
    rows = []
    for row, ids in enumerate(blocks.tolist()):
        sizes = _Sizes(config, uniforms[:, row].tolist())
        rows.append(_row(ids, batch.docs[row].tolist(), learned[row], sizes))
    return replace(batch, groups=torch.tensor(rows, device=batch.tokens.device))


class _Sizes:
    def __init__(self, config: NoiseConfig, uniforms: Sequence[Sequence[float]]) -> None:
        self.largest, (kind, pair, sizes) = config.group, uniforms
        self.random = config.layouts == "random" or (config.layouts == "both" and kind[0] < 0.5)
        offsets = [(size, offset) for size in range(2, self.largest + 1) for offset in range(size)]
        self.size, self.offset = offsets[int(pair[0] * len(offsets))]
        self.draws = iter(sizes)

    def of(self, count: int) -> list[int]:
        drawn = [2 + int(next(self.draws) * (self.largest - 1)) for _ in range(count)] if self.random else []
        return repaired(count, self.largest, drawn) if self.random else systematic(count, self.size, self.offset)


def systematic(count: int, size: int, offset: int) -> list[int]:
    """Sizes of consecutive groups of `size` of `count` blocks, behind a first one of `offset` (none at 0).
    Source: arXiv:2606.29215, systematic layouts."""
    made = [min(offset, count)] if offset else []
    while sum(made) < count:
        made.append(min(size, count - sum(made)))
    return made


def repaired(count: int, largest: int, drawn: Sequence[int]) -> list[int]:
    """Sizes of consecutive groups of `count` blocks, as drawn, at most `largest`; a single block left at the end joins
    the group before it or takes a block from it, and stays alone where neither can be.
    Source: arXiv:2606.29215, random layouts; the repair is ours."""
    made: list[int] = []
    for size in drawn:
        if sum(made) == count:
            break
        made.append(min(size, count - sum(made)))
    if len(made) > 1 and made[-1] == 1 and largest > 2:
        made[-2:] = [made[-2] + 1] if made[-2] < largest else [made[-2] - 1, 2]
    return made


def _row(blocks: Sequence[int], docs: Sequence[int], learned: Sequence[bool], sizes: _Sizes) -> list[int]:
    pieces, lengths = list[tuple[int, int, bool]](), list[int]()
    for piece, places in itertools.groupby(zip(docs, blocks, learned, strict=True)):
        pieces.append(piece)
        lengths.append(len(list(places)))
    first: list[int] = []
    while (place := len(first)) < len(pieces):
        doc, _, learns = pieces[place]
        stop = place + 1
        while learns and stop < len(pieces) and pieces[stop][0] == doc and pieces[stop][2]:
            stop += 1
        for size in sizes.of(stop - place) if learns else [1]:
            first += [pieces[len(first)][1]] * size
    return [group for group, length in zip(first, lengths, strict=True) for _ in range(length)]
