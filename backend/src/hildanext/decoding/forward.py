# One forward over the windows of many requests: packed or padded, positions, visibility, logits where wanted.
# Entry points: ForwardRow, forward, forward_kept (over keys under a rule).
# Letters: R rows, Q queries of the widest row, K keys, n selected positions, V vocabulary.
"""Batched forward over windows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from hildanext.core.mixture import Mixes, Mixture
from hildanext.core.types import Denoiser
from hildanext.decoding.kept_keys import KeptRow, KeptView
from hildanext.decoding.store import PackedView, StateStore

MOST_BLOCKS = 4


@dataclass(frozen=True)
class ForwardRow:
    """One sequence of a forward. slot: its row in the store; start: position of its first token; tokens [q] int64;
    select [q] bool: where logits are wanted; block: its block size; mixture: inputs in place of some tokens."""

    slot: int
    start: int
    tokens: Tensor
    select: Tensor
    block: int
    mixture: Mixture | None = None

    @cached_property
    def wanted(self) -> int:
        """Positions whose logits are wanted, a count."""
        return sum(self.select.tolist())


def forward(
    denoiser: Denoiser, store: StateStore | None, rows: Sequence[ForwardRow], device: torch.device
) -> list[Tensor]:
    """Logits [n_r, V] of every row's selected positions from one forward. With a store, its slots supply and receive
    the state of every layer; without one the rows must start at position 0."""
    packs = store is not None and worth_packing(denoiser, rows, device)
    with _mixing(denoiser, rows, packs):
        if store is not None and packs:
            logits = _packed(denoiser, store.packed(*_placed(rows), [row.block for row in rows]), rows, device)
        else:
            logits = _padded(denoiser, store, rows, device)
    return _parted(logits, rows)


def forward_kept(
    denoiser: Denoiser, kept: Sequence[KeptRow], rows: Sequence[ForwardRow], device: torch.device
) -> list[Tensor]:
    """`forward` of rows whose sequences have keys of their own, one of `kept` for each."""
    view = KeptView(kept)
    with _mixing(denoiser, rows, True), view.scoring(denoiser):
        return _parted(_packed(denoiser, view, rows, device), rows)


def _parted(logits: Tensor, rows: Sequence[ForwardRow]) -> list[Tensor]:
    return [logits] if len(rows) == 1 else list(torch.split(logits, [row.wanted for row in rows]))


def _mixing(denoiser: Denoiser, rows: Sequence[ForwardRow], packs: bool) -> AbstractContextManager[None]:
    parts, offset = list[Mixture](), 0
    for index, row in enumerate(rows):
        if row.mixture is not None:
            parts.append(row.mixture.moved(0, offset) if packs else row.mixture.moved(index, 0))
        offset += row.tokens.shape[0]
    if not parts:
        return nullcontext()
    if not isinstance(denoiser, Mixes):
        raise ValueError(f"forward: {type(denoiser).__name__} takes no mixtures")
    return denoiser.mixing(Mixture.joined(parts))


def worth_packing(denoiser: Denoiser, rows: Sequence[ForwardRow], device: torch.device) -> bool:
    """On the CPU, where padding and masks cost time; not for long prefills (one masked call is faster), not for shifted
    models, not for denoisers that take no layout."""
    if device.type != "cpu" or denoiser.shift != "none" or not denoiser.takes_layout:
        return False
    sizes = {row.tokens.shape[0] for row in rows}
    if len(rows) > 1 and len(sizes) == 1:
        return False
    return all(row.tokens.shape[0] <= MOST_BLOCKS * row.block for row in rows)


def _packed(
    denoiser: Denoiser, view: PackedView | KeptView, rows: Sequence[ForwardRow], device: torch.device
) -> Tensor:
    positions = [torch.arange(row.start, row.start + row.tokens.shape[0]) for row in rows]
    parts = [row.tokens for row in rows], positions, [row.select for row in rows]
    joined = [_joined(part).unsqueeze(0) for part in parts]
    tokens, places, select = joined if device.type == "cpu" else (one.to(device) for one in joined)
    return denoiser(tokens, places, _unread(device), cache=view, select=select, layout=view)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@cache
def _unread(device: torch.device) -> Tensor:
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def _padded(denoiser: Denoiser, store: StateStore | None, rows: Sequence[ForwardRow], device: torch.device) -> Tensor:
    sizes = [len(row.tokens) for row in rows]
    width = max(sizes)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    select = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : sizes[index]] = row.tokens
        select[index, : sizes[index]] = row.select
    positions = torch.tensor([row.start for row in rows]).unsqueeze(1) + torch.arange(width)
    cache = store.view(*_placed(rows), [row.block for row in rows]) if store is not None else None
    mask = visibility(rows, positions, cache.keys if cache else width)
    moved = [tensor.to(device) for tensor in (tokens, positions, mask, select)]
    return denoiser(moved[0], moved[1], moved[2], cache=cache, select=moved[3])


def _placed(rows: Sequence[ForwardRow]) -> tuple[list[int], list[int], list[int]]:
    return [row.slot for row in rows], [row.start for row in rows], [row.tokens.shape[0] for row in rows]


def visibility(rows: Sequence[ForwardRow], positions: Tensor, keys: int) -> Tensor:
    """[R, 1, Q, K] bool: key j is visible to a query when its block is not later and it is one of the row's own.
    positions [R, Q] int64. Source: LLaDA2.0 arXiv:2512.15745 eq. 3, the clean half."""
    block = torch.tensor([row.block for row in rows]).view(-1, 1, 1)
    stop = torch.tensor([row.start + len(row.tokens) for row in rows]).view(-1, 1, 1)
    key = torch.arange(keys).view(1, 1, -1)
    earlier = key // block <= positions.unsqueeze(2) // block
    return (earlier & (key < stop)).unsqueeze(1)
