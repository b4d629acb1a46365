# In which order recurrent layers read the positions of a forward: chunks, each going on from another, from what a store
# keeps, or from nothing. Attention has masks for this; a recurrence has these.
# Entry points: Runs (diffusion, causal, of_positions, decoding; windows, chunked, flat, scan).
# Letters: B rows, T positions of a row, N = B T, M chunks, w the widest chunk, C channels, r the convolution's reach.
# The noised block b goes on from the clean stream behind block b - 1, and nothing goes on from it outside its group.
"""Order of recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hildanext.core.masks import block_ids, document_starts
from hildanext.errors import ModelError

WIDEST = 64
COLUMNS = ("first", "size", "own", "floor", "link", "kept", "parent", "depth", "asked")


@dataclass(frozen=True)
class Runs:
    """Chunks sorted by depth, those whose end is asked for first. first, size: where a chunk lies in the N positions;
    own: where its stream begins; what lies before that is `link` further on, from `floor` on (0: nothing, or what is
    kept in row `kept`); parent: place of the chunk it goes on from among the ends of the level before. levels: (start,
    stop, ends asked for); ends: of each place of a store, (committed lengths, their numbers among the ends)."""

    shape: tuple[int, int]
    width: int
    chunks: dict[str, Tensor]
    levels: tuple[tuple[int, int, int], ...]
    places: tuple[Any, ...] = ()
    ends: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    _known: dict[Any, Tensor] = field(default_factory=dict)

    @classmethod
    def diffusion(cls, docs: Tensor, block: int, grid: str, groups: Tensor | None = None) -> Runs:
        """Over [noisy | clean], each L long: documents docs [B, L], blocks as in core/masks; groups: Batch.groups, a
        noised block goes on from those before it in its group. Source: docs/hybrids.md."""
        length = docs.shape[1]
        clean, starts, ids = _chunks(docs.cpu(), block, grid)
        alone = ids if groups is None else groups.cpu()
        segment = _begin(torch.stack([docs.cpu(), alone.expand_as(ids)]))[clean["row"], clean["column"]]
        count, opens = len(clean["row"]), clean["column"] == segment
        base = clean["row"] * 2 * length
        noisy = clean | {
            "first": base + clean["column"], "own": base + segment, "floor": base + length + starts,
            "link": torch.full_like(base, length),
            "parent": torch.where(opens, clean["parent"], clean["parent"] + count),
            "asked": ~torch.cat([opens[1:], torch.ones(1, dtype=torch.bool)]),
        }  # fmt: skip
        clean |= {"first": base + length + clean["column"], "own": base + length + starts}
        noisy["parent"] = torch.where(noisy["depth"] == 0, -1, noisy["parent"])
        return cls._of(_joined(clean, noisy), (docs.shape[0], 2 * length), docs.device)

    @classmethod
    def causal(cls, docs: Tensor) -> Runs:
        """Over rows of documents docs [B, L], each read from its beginning: the AR model, or noised text alone."""
        chunks, starts, _ = _chunks(docs.cpu(), docs.shape[1], "global")
        base = chunks["row"] * docs.shape[1]
        chunks |= {"first": base + chunks["column"], "own": base + starts}
        return cls._of(chunks, (docs.shape[0], docs.shape[1]), docs.device)

    @classmethod
    def of_positions(cls, positions: Tensor) -> Runs:
        """Over rows that are a text each, from its beginning; positions [B, T]. ModelError where they say otherwise:
        what a later beginning goes on from is not known."""
        if not torch.equal(positions, torch.arange(positions.shape[1], device=positions.device).expand_as(positions)):
            raise ModelError(
                "model: recurrent layers read a text from its beginning, and this computation gives several texts in a"
                " row, texts that branch or ones that begin in the middle; use a model with attention in every layer"
            )
        return cls.causal(torch.zeros_like(positions))

    @classmethod
    def decoding(cls, places: Sequence[Any], blocks: Sequence[int], positions: Tensor, back: bool = False) -> Runs:
        """Over the places of a store's view, each going on from what is kept of it: row 1 + n is that of place n.
        positions [B, T]: of the forward; back: ends one position before a block's end are kept, too."""
        rows, ends, width = list[tuple[int, ...]](), list[tuple[list[int], list[int]]](), positions.shape[1]
        for number, (place, block) in enumerate(zip(places, blocks, strict=True), 1):
            begin, lengths, numbers = place.row * width + place.offset, [], []
            cuts = list(_cuts(place.start, place.start + place.size, block, back))
            for depth, (start, stop, end) in enumerate(cuts):
                first = begin + start - place.start
                parent = len(rows) - 1 if depth else -1
                lengths += [stop] if end else []
                numbers += [len(rows)] if end else []
                rows.append((first, stop - start, begin, 0, 0, number, parent, depth, True))
            ends.append((lengths, numbers))
        columns = zip(COLUMNS, zip(*rows, strict=True), strict=True)
        table = {name: torch.tensor(values) for name, values in columns}
        return cls._of(table, (positions.shape[0], width), positions.device, tuple(places), ends)

    @classmethod
    def _of(
        cls, table: dict[str, Tensor], shape: tuple[int, int], device: torch.device, places: tuple[Any, ...] = (),
        ends: Sequence[tuple[list[int], list[int]]] = (),
    ) -> Runs:  # fmt: skip
        order = torch.argsort(2 * table["depth"] + ~table["asked"].bool(), stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        held = {name: table[name][order] for name in COLUMNS}
        sizes = torch.bincount(held["depth"]).tolist()
        asked = torch.bincount(held["depth"], weights=held["asked"].double(), minlength=len(sizes)).long().tolist()
        levels, start = [], 0
        for size, count in zip(sizes, asked, strict=True):
            levels.append((start, start + size, count))
            start += size
        before = torch.tensor([0, *(first for first, _, _ in levels)])[held["depth"]]
        held["parent"] = torch.where(held["depth"] > 0, rank[held["parent"]] - before, -1)
        # everything of a decoding forward is asked for, so a chunk's rank is its number among the ends
        known = tuple((tuple(lengths), tuple(rank[numbers].tolist())) for lengths, numbers in ends)
        moved = {name: value.to(device) for name, value in held.items()}
        return cls(shape, int(held["size"].max()), moved, tuple(levels), places, known)

    @property
    def positions(self) -> int:
        """N."""
        return self.shape[0] * self.shape[1]

    def windows(self, values: Tensor, kept: Tensor) -> Tensor:
        """values [B, T, C] -> [M, r + w, C]: each chunk behind the r positions before it in its stream; kept [1 + n, r,
        C]: what stands before the beginning, row 0 being zeros; 0 behind a chunk's end."""
        reach = kept.shape[1]
        if reach not in self._known:
            self._known[reach] = self._sources(reach)
        flat = torch.cat([values.flatten(0, 1), kept.flatten(0, 1)])
        taken = flat.index_select(0, self._known[reach].flatten())
        return taken.view(len(self._known[reach]), -1, values.shape[2])

    def _sources(self, reach: int) -> Tensor:
        of, none = {name: value[:, None] for name, value in self.chunks.items()}, self.positions
        place = of["first"] + torch.arange(-reach, self.width, device=of["first"].device)
        linked = (of["link"] > 0) & (place + of["link"] >= of["floor"])
        before = torch.where(linked, place + of["link"], none + of["kept"] * reach + place - of["own"] + reach)
        source = torch.where(place < of["own"], before, place)
        return torch.where(place >= of["first"] + of["size"], none, source)

    def tails(self, windows: Tensor, reach: int) -> Tensor:
        """windows [M, r + w, C] -> [M, r, C]: the last r positions of each chunk and what is before it."""
        at = self.chunks["size"][:, None] + torch.arange(reach, device=windows.device)
        return windows.gather(1, at[..., None].expand(-1, -1, windows.shape[2]))

    def chunked(self, values: Tensor) -> Tensor:
        """values [B, T, ...] -> [M, w, ...], 0 behind a chunk's end."""
        flat = values.flatten(0, 1)
        padded = torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])
        return padded.index_select(0, self._places().flatten()).view(-1, self.width, *flat.shape[1:])

    def _places(self) -> Tensor:
        if "places" not in self._known:
            first, step = self.chunks["first"][:, None], torch.arange(self.width, device=self.chunks["first"].device)
            self._known["places"] = torch.where(step < self.chunks["size"][:, None], first + step, self.positions)
        return self._known["places"]

    def flat(self, values: Tensor) -> Tensor:
        """values [M, w, ...] -> [B, T, ...]; where no chunk lies, values of no meaning."""
        if "back" not in self._known:
            places = self._places().flatten()
            back = torch.zeros(self.positions + 1, dtype=torch.long, device=places.device)
            self._known["back"] = back.index_copy(0, places, torch.arange(len(places), device=places.device))[:-1]
        return values.flatten(0, 1).index_select(0, self._known["back"]).view(*self.shape, *values.shape[2:])

    def scan(self, kept: Tensor, step: Callable[[slice, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The state each chunk begins with [M, ...] and those behind the chunks that are asked [E, ...]. kept [1 + n,
        ...]: before the beginning; step(chunks, states before them) -> states behind them."""
        begins, ends, held = [], list[Tensor](), kept
        for level, (start, stop, asked) in enumerate(self.levels):
            index = self.chunks["parent" if level else "kept"][start:stop]
            begins.append(held.index_select(0, index))
            held = step(slice(start, start + asked), begins[-1][:asked]) if asked else kept[:0]
            ends.append(held)
        return torch.cat(begins), torch.cat(ends)


def _cuts(start: int, stop: int, block: int, back: bool) -> Iterator[tuple[int, int, bool]]:
    while start < stop:
        end = (start // block + 1) * block
        ends = (end - 1, end) if back else (end,)
        at = min([start + WIDEST, stop, *(one for one in ends if one > start)])
        yield start, at, at in ends or at == stop
        start = at


def _begin(ids: Tensor) -> Tensor:
    index = torch.arange(ids.shape[2])
    first = torch.ones(ids.shape[1:], dtype=torch.bool)
    first[:, 1:] = (ids[..., 1:] != ids[..., :-1]).any(0)
    return torch.where(first, index, 0).cummax(dim=1).values


def _chunks(docs: Tensor, block: int, grid: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    starts, ids = document_starts(docs), block_ids(docs.shape[1], block, docs, grid).expand_as(docs)
    index = torch.arange(docs.shape[1]).expand_as(docs)
    cut = (index - _begin(torch.stack([docs, ids]))) % min(block, WIDEST) == 0
    row, column = cut.nonzero(as_tuple=True)
    count, number = len(row), cut.flatten().long().cumsum(0).view_as(docs) - 1
    begin = starts[row, column]
    after = torch.cat([(row * docs.shape[1] + column)[1:], torch.tensor([docs.numel()])])
    depth, nothing = torch.arange(count) - number[row, begin], torch.zeros(count, dtype=torch.long)
    chunks = {
        "row": row, "column": column, "size": after - row * docs.shape[1] - column, "floor": nothing, "link": nothing,
        "kept": nothing, "parent": torch.where(depth > 0, torch.arange(count) - 1, -1), "depth": depth,
        "asked": torch.cat([depth[1:] > 0, torch.zeros(1, dtype=torch.bool)]),
    }  # fmt: skip
    return chunks, begin, ids


def _joined(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name], other[name]]) for name in COLUMNS}
