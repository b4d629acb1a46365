# Prefixes between an engine's requests: finished blocks go into a tree, and a new request begins with what is known.
# Entry points: Sharing (take, hand, leave, make_room).
# What a layer keeps of a block depends on the tokens before and in it, on the block size, and on the model as it
# computes. An engine has one model, and a tree dies with its engine.
"""Sharing of committed blocks between requests."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from hildanext.config.decode import DecodeConfig
from hildanext.core.types import Denoiser
from hildanext.decoding.prefixes import Cuttable, Found, Kept, Key, PrefixTree, Run
from hildanext.decoding.state import Live, Window
from hildanext.decoding.store import StateStore


@dataclass
class Sharing:
    """What the requests of one engine know of each other: the tree, and for each request at work the runs its sequences
    end in. It is off without a store, without room, for models whose numbers depend on who shares a forward, and where
    what a layer keeps cannot be cut into positions (recurrent layers). A request without slots (under a rule that drops
    keys) takes no part."""

    denoiser: Denoiser
    store: StateStore
    config: DecodeConfig
    tree: PrefixTree = field(default_factory=PrefixTree)
    ends: dict[int, list[Run]] = field(default_factory=dict)

    @property
    def on(self) -> bool:
        """Whether anything is shared."""
        wanted = self.config.cache and self.config.prefix_bytes > 0 and self.denoiser.exact
        return wanted and all(isinstance(state, Cuttable) for state in self.store.layers.values())

    @property
    def limit(self) -> int:
        """Bytes the tree may have beside the slots as they are."""
        held = self.store.slots * self.denoiser.state_bytes(self.store.capacity)
        return min(self.config.prefix_bytes, self.config.kv_bytes - held)

    def take(self, live: Live) -> None:
        """Copy into a request's slots what is known of its final blocks and not committed yet."""
        canvas, block = live.canvas, live.canvas.blocks.block
        if not self.on or not live.slots or canvas.final - canvas.committed < block:
            return
        found = self._found(live)
        known = min(sum(length for _, length in path) for path in found) * block
        if known <= canvas.committed:
            return
        for slot, path in zip(live.slots, found, strict=True):
            self._put(slot, path, canvas.committed, known, block)
        if not live.counters.forwards:
            live.counters.cached = known
        canvas.committed = known
        self._hold(live, [path[-1][0] for path in found])

    def _found(self, live: Live) -> list[Found]:
        block = live.canvas.blocks.block
        root, whole = self._root(block), live.canvas.final // block
        return [self.tree.find(root, _keys(own, block, whole)) for own in sequences(live)]

    def _root(self, block: int) -> Hashable:
        model = self.denoiser
        return block, str(model.dtype), str(model.device), model.shift, model.block_grid, model.mask_id

    def _put(self, slot: int, path: Found, committed: int, known: int, block: int) -> None:
        start = 0
        for run, length in path:
            stop = min(start + length * block, known)
            first = max(start, committed)
            if first < stop:
                run.kept.part(first - start, stop - start).put(self.store, slot, first)
            start += length * block
        self.store.lengths[slot] = known

    def hand(self, live: Live) -> None:
        """Put a request's committed whole blocks into the tree."""
        block = live.canvas.blocks.block
        whole = live.canvas.committed // block
        around = live.canvas.blocks.after and block >= live.canvas.blocks.length  # one block begins no other text
        if not self.on or not live.slots or not whole or around:
            return
        ends = []
        for slot, own in zip(live.slots, sequences(live), strict=True):
            keep = partial(self._kept, slot, block)
            each = self.denoiser.state_bytes(block)
            ends.append(self.tree.add(self._root(block), _keys(own, block, whole), keep, each, self.limit))
        self._hold(live, [run for run in ends if run is not None])

    def _kept(self, slot: int, block: int, first: int, last: int) -> Kept | None:
        return Kept.of(self.store, slot, first * block, last * block)

    def _hold(self, live: Live, runs: list[Run]) -> None:
        for run in runs:
            run.users += 1
        for run in self.ends.get(live.number, []):
            run.users -= 1
        self.ends[live.number] = runs

    def soon(self, live: Live, window: Window, others: Mapping[Live, Window]) -> bool:
        """Whether the forward of `others` brings the block that a prefill begins with, so that waiting for it saves
        computing it twice."""
        stop = window.start + live.canvas.blocks.block
        return self.on and any(
            len(other.slots) >= len(live.slots) > 0
            and other.canvas.blocks.block == live.canvas.blocks.block
            and theirs.start <= window.start < theirs.stop
            and torch.equal(other.canvas.tokens[:stop], live.canvas.tokens[:stop])
            for other, theirs in others.items()
        )

    def leave(self, live: Live) -> None:
        """A request gives up its slots: what it has committed is handed over."""
        self.hand(live)
        self._hold(live, [])
        del self.ends[live.number]

    def make_room(self, live: Live) -> None:
        """The tree gives way to the slots; what the request that comes in can use goes last of what nobody uses."""
        if self.on and self.tree.bytes > self.limit:
            self._found(live)
            self.tree.shrink(self.limit, force=True)


def sequences(live: Live, start: int = 0, stop: int | None = None) -> tuple[Tensor, ...]:
    """The tokens int64 of each lane at [start, stop); those of the second, with guidance, have what is given masked."""
    canvas = live.canvas
    tokens = canvas.tokens[start:stop]
    if live.lanes == 1:
        return (tokens,)
    return tokens, torch.where(canvas.editable[start:stop], tokens, canvas.mask_id)


def _keys(tokens: Tensor, block: int, whole: int) -> list[Key]:
    raw, size = tokens[: whole * block].numpy().tobytes(), block * tokens.element_size()
    return [raw[start : start + size] for start in range(0, len(raw), size)]
