# What layers keep of finished whole blocks, by the token ids before and in them: what a later text need not compute.
# Entry points: PrefixTree (find, add, shrink), Run, Kept (copied out of a store's slot and into another).
# A run is consecutive blocks that every known text through it shares; texts part where runs end: a radix tree.
# What is read is copied into the reader's slot, so a run may be evicted at any moment without harm to anybody.
# Letters: H key heads, n positions, D head width.
"""Radix tree of committed blocks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from hildanext.decoding.store import StateStore

Key = bytes
"""The token ids of a block."""


@runtime_checkable
class Cuttable(Protocol):
    """A layer state whose past is a piece per position; states of another kind are not shared between requests."""

    def keep(self, slot: int, start: int, stop: int) -> tuple[Tensor, ...]:
        """Copies of a slot's committed positions; the second dimension of each tensor is the position."""
        ...

    def put(self, slot: int, start: int, kept: Sequence[Tensor]) -> None:
        """Write what `keep` gave from index `start` on."""
        ...


@dataclass(frozen=True)
class Kept:
    """What the layers keep of consecutive positions: layer -> its kind of state, tensors [H, n, D]."""

    layers: Mapping[int, tuple[type[Any], tuple[Tensor, ...]]]

    @classmethod
    def of(cls, store: StateStore, slot: int, start: int, stop: int) -> Kept | None:
        """Copied from a slot's committed positions; None where a layer's state cannot be cut into positions."""
        states = {index: state for index, state in store.layers.items() if isinstance(state, Cuttable)}
        if not states or len(states) < len(store.layers):
            return None
        return cls({index: (type(state), state.keep(slot, start, stop)) for index, state in states.items()})

    def put(self, store: StateStore, slot: int, start: int) -> None:
        """Write all of it into a slot from index `start` on; layers without a state yet get theirs."""
        for index, (kind, tensors) in self.layers.items():
            store.layer(index, kind).put(slot, start, tensors)

    def part(self, start: int, stop: int) -> Kept:
        """Views of the positions [start, stop)."""
        return Kept({i: (kind, tuple(one[:, start:stop] for one in all_)) for i, (kind, all_) in self.layers.items()})

    def copied(self) -> Kept:
        """The same in memory of its own."""
        return Kept({i: (kind, tuple(one.clone() for one in all_)) for i, (kind, all_) in self.layers.items()})

    @cached_property
    def bytes(self) -> int:
        """Bytes of all layers."""
        return sum(one.numel() * one.element_size() for _, all_ in self.layers.values() for one in all_)


@dataclass(eq=False)
class Run:
    """Consecutive blocks behind those of `above`. keys: the token ids of each; below: the runs that go on from its end,
    by their first key; users: requests at work whose text it is the last known run of; used: when it was last read."""

    keys: tuple[Key, ...]
    kept: Kept
    above: Run | None = None
    below: dict[Key, Run] = field(default_factory=dict)
    users: int = 0
    used: int = 0


Found = list[tuple[Run, int]]


@dataclass
class PrefixTree:
    """Runs by what stands before them. roots: one per kind of text, such as its block size; bytes: of all runs."""

    roots: dict[Hashable, Run] = field(default_factory=dict)
    runs: dict[Run, Hashable] = field(default_factory=dict)
    bytes: int = 0
    _clock: Iterator[int] = field(default_factory=count)

    def find(self, root: Hashable, keys: Sequence[Key]) -> Found:
        """The runs that hold the longest known beginning of `keys`, each with how many of its blocks are of it."""
        found: Found = []
        run, place, now = self.roots.get(root), 0, next(self._clock)
        while run is not None and place < len(keys) and (run := run.below.get(keys[place])) is not None:
            same = next((i for i, (a, b) in enumerate(zip(run.keys, keys[place:], strict=False)) if a != b), None)
            length = min(len(run.keys), len(keys) - place) if same is None else same
            run.used = now
            found.append((run, length))
            place += length
            if length < len(run.keys):
                break
        return found

    def add(
        self, root: Hashable, keys: Sequence[Key], keep: Callable[[int, int], Kept | None], each: int, limit: int
    ) -> Run | None:
        """Learn the blocks of `keys` that are not known yet: keep(first, last) gives what layers keep of them. each:
        bytes of a block; limit: of the tree. Unused runs give way; what still has no room is left out. Returns the run
        in which `keys` end, or None."""
        keys = keys[: max(0, limit) // max(1, each)]
        found = self.find(root, keys)
        known, last = sum(length for _, length in found), found[-1][0] if found else None
        if known == len(keys):
            return last
        if last is not None:
            last.users += 1
        fits = self.shrink(limit - each * (len(keys) - known))
        if last is not None:
            last.users -= 1
        kept = keep(known, len(keys)) if fits else None
        if kept is None:
            return None

        above = self.roots.setdefault(root, Run((), Kept({}))) if last is None else self._split(last, found[-1][1])
        run = Run(tuple(keys[known:]), kept, above, used=next(self._clock))
        above.below[run.keys[0]] = run
        self.runs[run] = root
        self.bytes += kept.bytes
        return run

    def _split(self, run: Run, length: int) -> Run:
        if length == len(run.keys):
            return run
        size = next(iter(run.kept.layers.values()))[1][0].shape[1] // len(run.keys)
        cut, end = size * length, size * len(run.keys)
        upper = Run(run.keys[:length], run.kept.part(0, cut).copied(), run.above, used=run.used)
        if run.above is not None:
            run.above.below[upper.keys[0]] = upper
        self.runs[upper] = self.runs[run]
        # the lower part stays the run its users know
        run.keys, run.kept, run.above = run.keys[length:], run.kept.part(cut, end).copied(), upper
        upper.below[run.keys[0]] = run
        return upper

    def shrink(self, limit: int, force: bool = False) -> bool:
        """Give up runs, least recently used first and from the ends of texts, until `limit` bytes are not exceeded;
        those of requests at work only with `force`, and last. Returns whether it came to that."""
        while self.bytes > limit:
            ends = [run for run in self.runs if not run.below and (force or not run.users)]
            if not ends:
                return False
            self.evict(min(ends, key=_worth))
        return True

    def evict(self, run: Run) -> None:
        """Forget a run nothing goes on from."""
        root = self.runs.pop(run)
        self.bytes -= run.kept.bytes
        if run.above is not None:
            del run.above.below[run.keys[0]]
        if not self.roots[root].below:
            del self.roots[root]


def _worth(run: Run) -> tuple[bool, int]:
    return run.users > 0, run.used
