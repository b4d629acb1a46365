# One row of a forward that holds a beginning once and what follows it many times: branches, and noisy copies of blocks.
# Entry points: Branches (branch, copy), Scored, visibility.
# Clean tokens see earlier blocks and their own, of the beginning and of their branch; a copy sees the clean blocks
# before it and itself: what [x_t ; x_0] gives for each branch and each noise, with their common part once.
# Letters: B rows, Q positions of the longest row.
"""Rows that branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Scored:
    """A token that is predicted: the index in the row of the state it is read from, its id, the weight of its nats,
    whose they are, and its position."""

    source: int
    token: int
    weight: float
    key: tuple[int, int, int]
    place: int


@dataclass
class Branches:
    """A row in the making. block: size of blocks, tokens; shared: ids that all branches begin with, whole blocks."""

    block: int
    shared: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    _labels: list[tuple[int, int, int]] = field(default_factory=list)
    _branches: int = 0
    _copies: int = 0

    def __post_init__(self) -> None:
        self._add(self.shared, 0, 0)

    def _add(self, ids: Sequence[int], start: int, copy: int) -> int:
        first, places = len(self.tokens), range(start, start + len(ids))
        self.tokens += ids
        self.positions += places
        self._labels += [(self._branches, copy, place // self.block) for place in places]
        return first

    def branch(self, ids: Sequence[int]) -> Callable[[int], int]:
        """Add a text that begins with the shared ids; gives the index in the row of each of its positions."""
        self._branches += 1
        shared = len(self.shared)
        first = self._add(ids[shared:], shared, 0)
        return lambda position: position if position < shared else first + position - shared

    def copy(self, ids: Sequence[int], start: int) -> int:
        """Add a noisy copy of a block of the newest branch, which begins at position `start`; gives its first index."""
        self._copies += 1
        return self._add(ids, start, self._copies)

    def labels(self) -> Tensor:
        """[3, Q] int64: branch (0: shared), copy (0: clean) and block of each token."""
        return torch.tensor(self._labels).T


def visibility(rows: Sequence[Branches], filler: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens [B, Q], positions [B, Q], mask [B, 1, Q, Q] bool) of rows side by side; padding sees padding only."""
    longest = max(len(row.tokens) for row in rows)
    sides = [(row, longest - len(row.tokens)) for row in rows]
    tokens = torch.tensor([row.tokens + [filler] * more for row, more in sides], device=device)
    positions = torch.tensor([row.positions + [0] * more for row, more in sides], device=device)
    labels = torch.stack([pad(row.labels(), (0, more), value=-1) for row, more in sides]).to(device)
    query, key = labels[:, :, :, None], labels[:, :, None, :]
    kin = (key[:, 0] == 0) | (key[:, 0] == query[:, 0])
    earlier = (key[:, 1] == 0) & (key[:, 2] < query[:, 2])
    own = (key[:, 1] == query[:, 1]) & (key[:, 2] == query[:, 2])
    return tokens, positions, (kin & (earlier | own))[:, None]
