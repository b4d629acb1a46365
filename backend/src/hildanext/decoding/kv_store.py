# Keys and values of committed tokens, one preallocated tensor per layer shared by every row of a batch.
# Entry points: KVStore (reserve, add, view, commit, fork, truncate, drop, release), KVView (what attention updates).
# Letters: S slots, H key heads, C capacity in positions, D head width. Slots are dense: rows of a batch are a slice.
"""Key-value store of block decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class KVView:
    """The slots [low, low + R) during one forward; passed to the model as its cache. `update` writes the new keys and
    values behind each row's committed length and returns all of them as views; nothing past is copied."""

    store: KVStore
    low: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def keys(self) -> int:
        """K: keys visible to this forward, the longest row's committed and new positions."""
        return max(start + size for start, size in zip(self.starts, self.sizes, strict=True))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Committed positions of the longest row (transformers asks when it is given no positions)."""
        return max(self.starts)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """key, value [R, H, Q, D] of this forward's tokens -> views [R, H, K, D] of committed and new ones."""
        held = self.store.layer(layer_idx, key, value)
        for tensor, new in zip(held, (key, value), strict=True):
            self._write(tensor, new)
        rows = slice(self.low, self.low + len(self.starts))
        return held[0][rows, :, : self.keys], held[1][rows, :, : self.keys]

    def _write(self, tensor: Tensor, new: Tensor) -> None:
        if len(set(self.starts)) == 1 and len(set(self.sizes)) == 1:
            rows = slice(self.low, self.low + len(self.starts))
            tensor[rows, :, self.starts[0] : self.starts[0] + self.sizes[0]] = new[:, :, : self.sizes[0]]
            return
        for row, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            tensor[self.low + row, :, start : start + size] = new[row, :, :size]


@dataclass
class KVStore:
    """Rows of keys and values. `lengths` holds each slot's committed positions; what lies behind is scratch that the
    next forward overwrites. Positions are the caller's: an index here is an index, whatever its token's position."""

    slots: int = 0
    capacity: int = 0
    lengths: list[int] = field(default_factory=list)
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def reserve(self, slots: int, capacity: int, most: int = 0) -> None:
        """Make room for `slots` rows of `capacity` positions. Growth is by at least half, so that it is rare, but stays
        within `most` positions in all (0: no bound), giving up free slots if need be. Growing copies the store."""
        if slots <= self.slots and capacity <= self.capacity and (not most or self.slots * self.capacity <= most):
            return
        shape = _grown(slots, self.slots), _grown(capacity, self.capacity)
        exact = max(slots, len(self.lengths)), max(capacity, max(self.lengths, default=0))
        self.slots, self.capacity = exact if most and shape[0] * shape[1] > most else shape
        for index, (key, value) in self.layers.items():
            self.layers[index] = (self._moved(key), self._moved(value))

    def _moved(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self.slots, old.shape[1], self.capacity, old.shape[3])
        rows, columns = len(self.lengths), max(self.lengths, default=0)
        new[:rows, :, :columns] = old[:rows, :, :columns]
        return new

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The tensors [S, H, C, D] of one layer, made at its first use in the shape and dtype of `key` and `value`."""
        if index not in self.layers:
            self.layers[index] = (
                key.new_zeros(self.slots, key.shape[1], self.capacity, key.shape[3]),
                value.new_zeros(self.slots, value.shape[1], self.capacity, value.shape[3]),
            )
        return self.layers[index]

    def add(self) -> int:
        """The index of a new empty slot, always the last one."""
        if len(self.lengths) == self.slots:
            raise ValueError(f"kv_store: all {self.slots} slots are used; reserve first")
        self.lengths.append(0)
        return len(self.lengths) - 1

    def view(self, rows: Sequence[int], starts: Sequence[int], sizes: Sequence[int]) -> KVView:
        """A cache for one forward over consecutive slots `rows`, each with `sizes` tokens written from index `starts`
        on: its committed length, or less where committed tokens are run again."""
        low = rows[0]
        if list(rows) != list(range(low, low + len(rows))):
            raise ValueError(f"kv_store: slots {list(rows)} of one forward must be consecutive")
        if any(start > self.lengths[row] for row, start in zip(rows, starts, strict=True)):
            raise ValueError(f"kv_store: starts {list(starts)} lie beyond the committed lengths {self.lengths}")
        if max(start + size for start, size in zip(starts, sizes, strict=True)) > self.capacity:
            raise ValueError(f"kv_store: {max(starts)} + {max(sizes)} positions exceed the capacity {self.capacity}")
        return KVView(self, low, tuple(starts), tuple(sizes))

    def commit(self, slot: int, count: int) -> None:
        """Keep the first `count` positions that the last forward wrote behind the slot's length."""
        self.lengths[slot] += count

    def truncate(self, slot: int, length: int) -> None:
        """Forget everything of a slot from index `length` on."""
        if length > self.lengths[slot]:
            raise ValueError(f"kv_store: slot {slot} holds {self.lengths[slot]} positions, cannot truncate to {length}")
        self.lengths[slot] = length

    def fork(self, slot: int) -> int:
        """A new slot with a copy of this one's committed keys and values."""
        new, length = self.add(), self.lengths[slot]
        for tensor in self._tensors():
            tensor[new, :, :length] = tensor[slot, :, :length]
        self.lengths[new] = length
        return new

    def drop(self, slot: int, keep: Tensor) -> None:
        """Keep only the committed indices `keep` [n] int64, ascending; the slot becomes shorter and approximate."""
        for tensor in self._tensors():
            tensor[slot, :, : len(keep)] = tensor[slot][:, keep]
        self.lengths[slot] = len(keep)

    def release(self, slot: int) -> int | None:
        """Free a slot. The last slot moves into the hole, so slots stay dense; returns its old index, if it moved.
        With the last one the memory goes too."""
        last = len(self.lengths) - 1
        if slot != last:
            for tensor in self._tensors():
                tensor[slot, :, : self.lengths[last]] = tensor[last, :, : self.lengths[last]]
            self.lengths[slot] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.slots, self.capacity = 0, 0
            self.layers.clear()
        return last if slot != last else None

    def _tensors(self) -> list[Tensor]:
        return [tensor for pair in self.layers.values() for tensor in pair]

    def bytes(self) -> int:
        """Bytes allocated for all layers."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def committed(self, slot: int, layer: int) -> tuple[Tensor, Tensor]:
        """Views [H, n, D] of a slot's committed keys and values in one layer."""
        key, value = self.layers[layer]
        return key[slot, :, : self.lengths[slot]], value[slot, :, : self.lengths[slot]]


def _grown(wanted: int, held: int) -> int:
    return held if wanted <= held else max(wanted, held + held // 2)


def bytes_per_position(config: Any, element_size: int) -> int:
    """Key and value bytes one token costs in all layers of a Hugging Face configuration. Source: acceleration 9."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * element_size)
