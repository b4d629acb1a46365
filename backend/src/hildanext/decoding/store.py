# What the layers of a model keep of committed tokens, one opaque state per layer with a row for every slot of a batch.
# Entry points: StateStore, LayerState (what a kind of state must do), KeysValues (the kind attention uses), PaddedView
# and PackedView (what a forward gets as its cache).
# Letters: S slots, R rows, H key heads, C capacity in positions, Q new positions of a row, N of all rows, D head width.
"""State store of block decoding: keys and values, or whatever else a layer needs to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Kind = TypeVar("Kind", bound="LayerState")


class Place(NamedTuple):
    """One row of a forward: its slot, the index of its first token there, how many tokens it brings, and where they lie
    in the forward's tensors: at [row, offset : offset + size]."""

    slot: int
    start: int
    size: int
    row: int
    offset: int


class LayerState(Protocol):
    """What one layer keeps of every slot's committed tokens. What a forward appends is scratch until it is committed,
    and is dropped where the next forward comes first. Slots are dense, and only the last one is ever released."""

    def __init__(self, slots: int, capacity: int) -> None:
        """An empty state of `slots` rows with room for `capacity` positions each."""
        ...

    def append(self, places: Sequence[Place], *new: Tensor) -> Any:
        """Keep what a forward computed at its new positions behind each row's start; returns what the layer reads. Any
        whole number of the row's blocks may be committed afterwards."""
        ...

    def commit(self, slot: int, length: int) -> None:
        """The first `length` positions of a slot are its past from now on; what was appended beyond them is dropped."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the past of a slot, `length` positions, into another."""
        ...

    def release(self, slot: int) -> None:
        """Forget a slot, so that it is empty when it is used again."""
        ...

    def grow(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        """Change the room; `lengths` are the positions to keep of each slot in use."""
        ...

    def bytes(self) -> int:
        """Bytes allocated."""
        ...


@dataclass
class KeysValues:
    """Keys and values [S, H, C, D] of one layer, allocated at its first use in the shape and dtype of what comes. The
    past is never copied by a forward: new positions are written behind it, and all of them are read as views."""

    slots: int
    capacity: int
    held: tuple[Tensor, ...] = ()

    def append(self, places: Sequence[Place], *new: Tensor) -> tuple[Tensor, ...]:
        """Write keys and values, each [R, H, Q, D] or end to end [1, H, N, D]; returns the whole tensors."""
        self._allocate(new)
        for held, one in zip(self.held, new, strict=True):
            _write(held, one, places)
        return self.held

    def _allocate(self, like: Sequence[Tensor]) -> None:
        if not self.held:
            self.held = tuple(one.new_zeros(self.slots, one.shape[-3], self.capacity, one.shape[-1]) for one in like)

    def keep(self, slot: int, start: int, stop: int) -> tuple[Tensor, ...]:
        """Copies [H, stop - start, D] of a slot's committed positions."""
        return tuple(held[slot, :, start:stop].clone() for held in self.held)

    def put(self, slot: int, start: int, kept: Sequence[Tensor]) -> None:
        """Write what `keep` gave from index `start` on."""
        self._allocate(kept)
        for held, one in zip(self.held, kept, strict=True):
            held[slot, :, start : start + one.shape[1]] = one

    def commit(self, slot: int, length: int) -> None:
        """Nothing to do: what lies behind the length is overwritten by the next forward."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the committed positions."""
        for held in self.held:
            held[target, :, :length] = held[source, :, :length]

    def release(self, slot: int) -> None:
        """Nothing to do: a slot is written before it is read."""

    def grow(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        """Copy the committed positions into larger tensors."""
        self.slots, self.capacity = slots, capacity
        self.held = tuple(self._moved(held, len(lengths), max(lengths, default=0)) for held in self.held)

    def _moved(self, held: Tensor, rows: int, columns: int) -> Tensor:
        new = held.new_zeros(self.slots, held.shape[1], self.capacity, held.shape[3])
        new[:rows, :, :columns] = held[:rows, :, :columns]
        return new

    def bytes(self) -> int:
        """Of both tensors."""
        return sum(held.numel() * held.element_size() for held in self.held)


def _write(held: Tensor, new: Tensor, places: Sequence[Place]) -> None:
    first, padded = places[0], new.shape[0] == len(places)
    if padded and all(place.start == first.start and place.size == first.size for place in places):
        rows = slice(first.slot, first.slot + len(places))
        held[rows, :, first.start : first.start + first.size] = new[:, :, : first.size]
        return
    for slot, start, size, row, offset in places:
        held[slot, :, start : start + size] = new[row, :, offset : offset + size]


@dataclass
class View:
    """The store during one forward, passed to the model as its cache: which slots take part, where their new
    positions are, and their block sizes. A layer asks for its state, reads its past and appends to it."""

    store: StateStore
    places: tuple[Place, ...]
    blocks: tuple[int, ...]

    def state(self, layer: int, kind: type[Kind]) -> Kind:
        """The state of one layer, made at its first use."""
        return self.store.layer(layer, kind)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Committed positions of the longest row (transformers asks when it is given no positions)."""
        return max(place.start for place in self.places)


class PaddedView(View):
    """Consecutive slots, a row each, padded to the longest."""

    @property
    def keys(self) -> int:
        """K: positions this forward can see, those of the longest row, committed and new."""
        return max(place.start + place.size for place in self.places)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """key, value [R, H, Q, D] of this forward's tokens -> views [R, H, K, D] of committed and new ones."""
        keys, values = self.state(layer_idx, KeysValues).append(self.places, key, value)
        rows = slice(self.places[0].slot, self.places[0].slot + len(self.places))
        return keys[rows, :, : self.keys], values[rows, :, : self.keys]


class BlockQueries(NamedTuple):
    """Queries [first, last) of a packed row see the indices [0, keys) of a slot: one block and all before it."""

    slot: int
    first: int
    last: int
    keys: int


@dataclass
class PackedView(View):
    """Any slots, their tokens end to end in a single row, without padding and without a mask: cache and attention
    layout in one; attention runs block by block over the store."""

    def __post_init__(self) -> None:
        self.queries = [found for pair in zip(self.places, self.blocks, strict=True) for found in _queries(*pair)]
        self.held: tuple[Tensor, ...] = ()

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store key, value [1, H, N, D] and return them; `attend` reads the store."""
        self.held = self.state(layer_idx, KeysValues).append(self.places, key, value)
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query [1, Hq, N, D] -> [1, Hq, N, D]; query heads that share a key head become queries of that head."""
        held_key, held_value = self.held
        heads, width = held_key.shape[1], query.shape[3]
        output = query.new_empty(query.shape[:3] + held_value.shape[3:])
        for slot, first, last, keys in self.queries:
            own = query[:, :, first:last].reshape(1, heads, -1, width)
            seen = scaled_dot_product_attention(
                own, held_key[slot : slot + 1, :, :keys], held_value[slot : slot + 1, :, :keys], scale=scale
            )
            output[:, :, first:last] = seen.reshape(1, query.shape[1], -1, held_value.shape[3])
        return output


def _queries(place: Place, block: int) -> list[BlockQueries]:
    start, stop, found = place.start, place.start + place.size, []
    shift = place.offset - start
    while start < stop:
        end = min((start // block + 1) * block, stop)
        found.append(BlockQueries(place.slot, start + shift, end + shift, end))
        start = end
    return found


@dataclass
class StateStore:
    """A state per layer, a slot per sequence; `lengths` holds each slot's committed positions. Positions are the
    caller's: an index here is an index, whatever its token's position. With the last slot the memory goes too."""

    slots: int = 0
    capacity: int = 0
    lengths: list[int] = field(default_factory=list)
    layers: dict[int, LayerState] = field(default_factory=dict)

    def reserve(self, slots: int, capacity: int, fits: Callable[[int, int], bool] | None = None) -> None:
        """Make room for `slots` rows of `capacity` positions. Growth is by at least half, so that it is rare, but not
        beyond what `fits` (slots, capacity) allows, giving up free slots if need be. Growing copies the store."""
        allowed = fits or (lambda *_: True)
        if slots <= self.slots and capacity <= self.capacity and allowed(self.slots, self.capacity):
            return
        shape = _grown(slots, self.slots), _grown(capacity, self.capacity)
        exact = max(slots, len(self.lengths)), max(capacity, max(self.lengths, default=0))
        self.slots, self.capacity = shape if allowed(*shape) else exact
        for state in self.layers.values():
            state.grow(self.slots, self.capacity, self.lengths)

    def layer(self, index: int, kind: type[Kind]) -> Kind:
        """The state of one layer, made at its first use. ValueError where it is of another kind."""
        if index not in self.layers:
            self.layers[index] = kind(self.slots, self.capacity)
        state = self.layers[index]
        if not isinstance(state, kind):
            raise ValueError(f"store: layer {index} keeps {type(state).__name__}, not {kind.__name__}")
        return state

    def add(self) -> int:
        """The index of a new empty slot, always the last one."""
        if len(self.lengths) == self.slots:
            raise ValueError(f"store: all {self.slots} slots are used; reserve first")
        self.lengths.append(0)
        return len(self.lengths) - 1

    def view(
        self, rows: Sequence[int], starts: Sequence[int], sizes: Sequence[int], blocks: Sequence[int] = ()
    ) -> PaddedView:
        """A cache for one forward over consecutive slots `rows`, each with `sizes` tokens written from index `starts`
        on: its committed length, or less where committed tokens are run again; blocks: their block sizes."""
        if list(rows) != list(range(rows[0], rows[0] + len(rows))):
            raise ValueError(f"store: slots {list(rows)} of one forward must be consecutive")
        return PaddedView(self, self._places(rows, starts, sizes, range(len(rows)), [0] * len(rows)), tuple(blocks))

    def packed(
        self, rows: Sequence[int], starts: Sequence[int], sizes: Sequence[int], blocks: Sequence[int]
    ) -> PackedView:
        """A cache and layout for one forward over any slots, their tokens end to end in one row."""
        offsets = [0, *accumulate(sizes)][: len(sizes)]
        return PackedView(self, self._places(rows, starts, sizes, [0] * len(rows), offsets), tuple(blocks))

    def _places(
        self, slots: Sequence[int], starts: Sequence[int], sizes: Sequence[int], *where: Iterable[int]
    ) -> tuple[Place, ...]:
        if any(start > self.lengths[slot] for slot, start in zip(slots, starts, strict=True)):
            raise ValueError(f"store: starts {list(starts)} lie beyond the committed lengths {self.lengths}")
        if max(start + size for start, size in zip(starts, sizes, strict=True)) > self.capacity:
            raise ValueError(f"store: {max(starts)} + {max(sizes)} positions exceed the capacity {self.capacity}")
        return tuple(Place(*values) for values in zip(slots, starts, sizes, *where, strict=True))

    def commit(self, slot: int, count: int) -> None:
        """Keep the first `count` positions that the last forward wrote behind the slot's length."""
        self.lengths[slot] += count
        for state in self.layers.values():
            state.commit(slot, self.lengths[slot])

    def release(self, slot: int) -> int | None:
        """Free a slot. The last slot moves into the hole, so slots stay dense; returns its old index, if it moved."""
        last = len(self.lengths) - 1
        for state in self.layers.values():
            if slot != last:
                state.move(last, slot, self.lengths[last])
            state.release(last)
        self.lengths[slot] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.slots, self.capacity = 0, 0
            self.layers.clear()
        return last if slot != last else None

    def bytes(self) -> int:
        """Bytes allocated for all layers."""
        return sum(state.bytes() for state in self.layers.values())


def _grown(wanted: int, held: int) -> int:
    return held if wanted <= held else max(wanted, held + held // 2)
