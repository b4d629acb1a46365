# Windows of different sizes in one forward without padding: their tokens lie end to end in a single row.
# Entry points: PackedView (cache and attention layout of such a forward), worth_packing.
# Linear layers then see no padding at all; attention runs per block against that request's own slot, without a mask.
"""PackedView forward of ragged windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hildanext.decoding.kv_store import KVStore

MOST_BLOCKS = 4


@dataclass(frozen=True)
class BlockQueries:
    """Queries [first, last) of the packed row see the indices [0, keys) of a slot: one block and all before it."""

    slot: int
    first: int
    last: int
    keys: int


@dataclass
class PackedView:
    """Stores each row's new keys and values behind its start, then attends block by block over views of the store.
    starts, sizes: index and count of each row's new positions; blocks: their block sizes."""

    store: KVStore
    slots: Sequence[int]
    starts: Sequence[int]
    sizes: Sequence[int]
    blocks: Sequence[int]
    layer: int = 0

    def __post_init__(self) -> None:
        if max(start + size for start, size in zip(self.starts, self.sizes, strict=True)) > self.store.capacity:
            raise ValueError(f"packed: rows {list(zip(self.starts, self.sizes, strict=True))} exceed the store")
        self.offsets = [sum(self.sizes[:row]) for row in range(len(self.sizes))]
        self.pieces = [piece for row in range(len(self.sizes)) for piece in self._pieces(row)]

    def _pieces(self, row: int) -> list[BlockQueries]:
        start, stop, block = self.starts[row], self.starts[row] + self.sizes[row], self.blocks[row]
        shift, found = self.offsets[row] - start, []
        while start < stop:
            end = min((start // block + 1) * block, stop)
            found.append(BlockQueries(self.slots[row], start + shift, end + shift, end))
            start = end
        return found

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Committed positions of the longest row (transformers asks when it is given no positions)."""
        return max(self.starts)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store key, value [1, H, N, D] and return them; `attend` reads the store."""
        self.layer = layer_idx
        for held, new in zip(self.store.layer(layer_idx, key, value), (key, value), strict=True):
            for slot, start, size, offset in zip(self.slots, self.starts, self.sizes, self.offsets, strict=True):
                held[slot, :, start : start + size] = new[0, :, offset : offset + size]
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query [1, Hq, N, D] -> [1, Hq, N, D]; query heads that share a key head become queries of that head."""
        held_key, held_value = self.store.layers[self.layer]
        heads, width = held_key.shape[1], query.shape[3]
        output = query.new_empty(query.shape[:3] + held_value.shape[3:])
        for piece in self.pieces:
            own = query[:, :, piece.first : piece.last].reshape(1, heads, -1, width)
            keys = held_key[piece.slot : piece.slot + 1, :, : piece.keys]
            values = held_value[piece.slot : piece.slot + 1, :, : piece.keys]
            seen = scaled_dot_product_attention(own, keys, values, scale=scale)
            output[:, :, piece.first : piece.last] = seen.reshape(1, query.shape[1], -1, values.shape[3])
        return output


def worth_packing(denoiser: Any, sizes: Sequence[int], blocks: Sequence[int], device: torch.device) -> bool:
    """On the CPU, where padding and masks cost time; not for long prefills (one masked call is faster), not for shifted
    models, not for denoisers that take no layout."""
    if device.type != "cpu" or not (hasattr(denoiser, "body") or getattr(denoiser, "takes_layout", False)):
        return False
    short = all(size <= MOST_BLOCKS * block for size, block in zip(sizes, blocks, strict=True))
    return getattr(denoiser, "shift", "none") == "none" and short and (len(sizes) == 1 or len(set(sizes)) > 1)
