# The keys of a request under a compressor, in memory of its own: exact ones of the prompt, then what the rule leaves.
# Entry points: KeptKeys (of one sequence: turn, commit), KeptRow and KeptView (cache and layout of a forward).
# Columns are no positions: a head may have dropped others than its neighbour. Positions are in the keys, and new ones
# come from the canvas. What a forward appends is scratch until it is committed, as in the store.
# Letters: H key heads, C columns there is room for, n committed ones, q new ones, D head width, G query heads of a key.
"""Keys and values under a rule that leaves some out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from hildanext.core.types import Denoiser
from hildanext.decoding.compression import Known, KVCompressor
from hildanext.errors import DecodeError
from hildanext.models.denoiser import HFDenoiser

Phase = Literal["all", "first", "later"]


@dataclass
class _Layer:
    """One layer. key, value [H, C, D]; place [H, C] int64; score [H, C]; count: n; whole: whether every head has all n
    columns; alive [H, C] bool where not; chosen: what the looks of the open block see of the n columns, None: all."""

    key: Tensor
    value: Tensor
    place: Tensor
    score: Tensor
    count: int = 0
    whole: bool = True
    alive: Tensor = field(default_factory=lambda: torch.empty(0))
    chosen: _Chosen | None = None

    @classmethod
    def like(cls, key: Tensor, value: Tensor, room: int) -> _Layer:
        """Empty, for keys and values [H, q, D] like these."""
        heads = key.shape[0]
        place = torch.full((heads, room), -1, dtype=torch.long, device=key.device)
        shapes = (key.new_zeros(heads, room, key.shape[2]), value.new_zeros(heads, room, value.shape[2]))
        return cls(*shapes, place, torch.zeros(heads, room, device=key.device))

    def room(self, columns: int) -> None:
        """Make room for so many columns, and an eighth more."""
        more = columns + columns // 8 - self.key.shape[1]
        if columns > self.key.shape[1]:
            self.key, self.value = (pad(one, (0, 0, 0, more)) for one in (self.key, self.value))
            self.place, self.score = pad(self.place, (0, more), value=-1), pad(self.score, (0, more))
            self.alive = self.alive if self.whole else pad(self.alive, (0, more), value=False)

    def visible(self, stop: int) -> Tensor | None:
        """[H, stop] bool: what may be seen of the first columns, all new ones; None: all of them."""
        if self.whole:
            return None
        return torch.cat([self.alive[:, : self.count], self.alive.new_ones(len(self.alive), stop - self.count)], dim=1)

    def drop(self, kept: Tensor, gather: bool) -> bool:
        """Leave out of the committed columns those that are not kept [H, n]; whether there were any."""
        alive = kept if self.whole else kept & self.alive[:, : self.count]
        if self.whole and bool(alive.all()):
            return False
        counts = alive.sum(dim=1)
        if gather:
            width = int(counts.max())
            # the last column stays the last token's, which a shifted model reads again
            order = torch.sort(alive, dim=1, stable=True).indices[:, alive.shape[1] - width :]
            whole, alive = bool((counts == width).all()), alive.gather(1, order)
            self.key, self.value = (_gathered(one, order) for one in (self.key, self.value))
            self.place = self.place.gather(1, order).masked_fill(~alive, -1)
            self.score, self.count = self.score.gather(1, order), width
        else:
            whole = False
            self.place[:, : self.count].masked_fill_(~alive, -1)
        self.whole, self.alive = whole, torch.empty(0) if whole else pad(alive, (0, self.key.shape[1] - self.count))
        return True

    @property
    def bytes(self) -> int:
        """Of keys and values."""
        return sum(one.numel() * one.element_size() for one in (self.key, self.value))


@dataclass(frozen=True)
class _Chosen:
    """What later looks see in place of the committed columns: keys and values [1, H, k, D], of them those in mask
    [H, k] bool; None: all."""

    key: Tensor
    value: Tensor
    mask: Tensor | None


def _gathered(held: Tensor, order: Tensor) -> Tensor:
    return held.gather(1, order[..., None].expand(-1, -1, held.shape[2]))


@dataclass
class KeptKeys:
    """What a sequence keeps of `length` committed tokens under a rule. room: columns expected at most; phase: of the
    next forward: `all` that is kept, a block's `first` look, a `later` one; block: where the open block of the last
    look begins; touched: whether a forward was shown less than all, or something old; rereads:
    whether forwards begin with the last committed token (shifted models), which then sees itself whatever is chosen."""

    rule: KVCompressor
    room: int
    length: int = 0
    layers: dict[int, _Layer] = field(default_factory=dict)
    phase: Phase = "all"
    block: int = -1
    touched: bool = False
    rereads: bool = False

    def turn(self, opened: int | None) -> None:
        """Before a forward: where its open block begins, None where it has none."""
        self.phase = "all"
        if opened is not None and self.rule.looks:
            self.phase, self.block = "first" if opened != self.block else "later", opened

    def append(self, layer: int, place: int, new: tuple[Tensor, Tensor], score: Tensor | None) -> None:
        """Write keys and values [H, q, D] of the positions from `place` on behind the committed columns; a committed
        token that is read again keeps its own."""
        held = self.layers.get(layer) or self.layers.setdefault(layer, _Layer.like(*new, self.room))
        known = max(0, self.length - place)
        first, stop = held.count + place + known - self.length, held.count + place + new[0].shape[1] - self.length
        held.room(stop)
        held.key[:, first:stop], held.value[:, first:stop] = new[0][:, known:], new[1][:, known:]
        held.place[:, first:stop] = torch.arange(place + known, place + new[0].shape[1], device=held.place.device)
        if score is not None:
            held.score[:, first:stop] = score[:, known:]

    def commit(self, count: int, dropping: bool) -> None:
        """Keep the first `count` positions behind the length; dropping: apply the rule to all that is kept."""
        self.length += count
        for held in self.layers.values():
            held.chosen = None
            if not held.whole:
                held.alive[:, held.count : held.count + count] = True
            held.count += count
            kept = self.rule.kept(self._known(held)) if dropping else None
            if kept is not None:
                self.touched |= held.drop(kept, self.rule.mode == "gather")

    def _known(self, held: _Layer) -> Known:
        own = slice(0, held.count)
        score = held.score[:, own] if self.rule.scored else None
        return Known(held.key[:, own], held.value[:, own], held.place[:, own], self.length, score)

    def attend(self, layer: int, query: Tensor, own: int, scale: float | None) -> Tensor:
        """query [1, H, Gq, D] that sees the columns kept and `own` new ones -> [1, H, Gq, D]."""
        held = self.layers[layer]
        stop = held.count + own
        key, value = held.key[None, :, :stop], held.value[None, :, :stop]
        if self.phase == "first" and own and self.rule.wants(held.count):
            return self._first(held, query, (key, value), scale)
        seen = held.visible(stop)
        if self.phase == "later" and (chosen := held.chosen) is not None:
            if self.rule.mode == "gather":
                new = key[:, :, held.count :], value[:, :, held.count :]
                key, value = torch.cat([chosen.key, new[0]], 2), torch.cat([chosen.value, new[1]], 2)
            seen = None if chosen.mask is None else pad(chosen.mask, (0, own), value=True)
        mask = None if seen is None else seen[None, :, None, :]
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    def _first(self, held: _Layer, query: Tensor, keys: tuple[Tensor, Tensor], scale: float | None) -> Tensor:
        key, value = keys
        scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scale is None else scale)
        share = scores.float().softmax(dim=3)
        mask = self.rule.seen(share[0, :, :, : held.count].sum(dim=1))
        if mask is not None:
            mask[:, -1] |= self.rereads
            self.touched = True
        if mask is None:
            held.chosen = None
        elif self.rule.mode == "gather":
            order = torch.sort(~mask, dim=1, stable=True).indices[:, : int(mask.sum(dim=1).max())]
            own, held_key = mask.gather(1, order), _gathered(held.key, order)[None]
            held.chosen = _Chosen(held_key, _gathered(held.value, order)[None], None if bool(own.all()) else own)
        else:
            held.chosen = _Chosen(key, value, mask)
        return share.to(value.dtype) @ value

    def share(self) -> float:
        """Of the committed keys of all layers and heads the share that is kept, in [0, 1]."""
        kept = sum(int((held.place[:, : held.count] >= 0).sum()) for held in self.layers.values())
        return kept / max(1, sum(len(held.place) * self.length for held in self.layers.values()))

    def bytes(self) -> int:
        """Allocated for keys and values."""
        return sum(held.bytes for held in self.layers.values())


def told(kept: Sequence[KeptKeys]) -> tuple[str, ...]:
    """What a result says of its keys; nothing where all of them were seen by every forward."""
    if not any(keys.touched for keys in kept):
        return ()
    name, share = type(kept[0].rule).__module__.rpartition(".")[2], sum(keys.share() for keys in kept) / len(kept)
    return (f"kv {name}: an approximation; {100 * share:.0f} % of the committed keys were kept to the end",)


class KeptRow(NamedTuple):
    """A sequence of a forward: its keys, the position of its first token, how many it brings, its block size, and where
    its canvas ends."""

    keys: KeptKeys
    start: int
    size: int
    block: int
    end: int


class Segment(NamedTuple):
    """Queries [first, last) of a packed forward, all of one block of `keys`, that see `own` of its new columns; stale:
    of which some are of an earlier forward."""

    keys: KeptKeys
    first: int
    last: int
    own: int
    stale: bool


@dataclass
class KeptView:
    """Cache and layout of one forward over sequences with keys of their own, end to end in one row."""

    rows: Sequence[KeptRow]
    scores: Mapping[int, Tensor] = field(default_factory=dict)
    layer: int = 0

    def __post_init__(self) -> None:
        self.segments, self.offsets, offset = list[Segment](), list[int](), 0
        for row in self.rows:
            self.offsets.append(offset)
            self.segments += _segments(row, offset)
            row.keys.rereads = row.start < row.keys.length
            row.keys.touched |= row.start > row.keys.length or self.segments[-1].stale
            offset += row.size

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Committed positions of the longest sequence."""
        return max(row.keys.length for row in self.rows)

    def state(self, layer: int, kind: type[Any]) -> Any:
        """DecodeError: a layer that keeps something else."""
        raise DecodeError("kv: it selects keys and values, and this model keeps another state; leave kv out")

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep key, value [1, H, N, D] and return them; `attend` reads what is kept."""
        self.layer = layer_idx
        score = self.scores[layer_idx][0].T if self.scores else None
        for row, offset in zip(self.rows, self.offsets, strict=True):
            own = slice(offset, offset + row.size)
            new = (key[0, :, own], value[0, :, own])
            row.keys.append(layer_idx, row.start, new, None if score is None else score[:, own])
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query [1, H G, N, D] -> [1, H G, N, D]; query heads that share a key head become queries of that head."""
        output = query.new_empty(query.shape[:3] + value.shape[3:])
        for keys, first, last, own, _ in self.segments:
            heads = len(keys.layers[self.layer].key)
            asked = query[:, :, first:last].reshape(1, heads, -1, query.shape[3])
            seen = keys.attend(self.layer, asked, own, scale)
            output[:, :, first:last] = seen.reshape(1, query.shape[1], -1, value.shape[3])
        return output

    def scoring(self, denoiser: Denoiser) -> AbstractContextManager[Any]:
        """A context in which the forward's keys are scored, where a rule wants that."""
        wanted = any(row.keys.rule.scored for row in self.rows)
        if not wanted or not isinstance(denoiser, HFDenoiser) or denoiser.key_scores is None:
            return nullcontext()
        return _Scoring(self, denoiser.key_scores.scoring(denoiser.model))


@dataclass
class _Scoring(AbstractContextManager[None]):
    view: KeptView
    inner: AbstractContextManager[Mapping[int, Tensor]]

    def __enter__(self) -> None:
        self.view.scores = self.inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)


def _segments(row: KeptRow, offset: int) -> Iterator[Segment]:
    start, stop = row.start, row.start + row.size
    shift = offset - start
    while start < stop:
        end = min((start // row.block + 1) * row.block, row.end)
        yield Segment(row.keys, start + shift, min(end, stop) + shift, end - row.keys.length, end > stop)
        start = end
