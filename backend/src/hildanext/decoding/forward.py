# One forward over the windows of many requests: packed or padded, positions, visibility, logits where wanted.
# Entry points: ForwardRow, forward.
# Letters: R rows, Q queries of the widest row, K keys, n selected positions, V vocabulary.
"""Batched forward over windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hildanext.core.types import Denoiser
from hildanext.decoding.kv_store import KVStore
from hildanext.decoding.packed import PackedView, worth_packing


@dataclass(frozen=True)
class ForwardRow:
    """One sequence of a forward. slot: its row in the store; start: position of its first token; tokens [q] int64;
    select [q] bool: where logits are wanted; block: its block size."""

    slot: int
    start: int
    tokens: Tensor
    select: Tensor
    block: int


def forward(
    denoiser: Denoiser, store: KVStore | None, rows: Sequence[ForwardRow], device: torch.device
) -> list[Tensor]:
    """Logits [n_r, V] of every row's selected positions from one forward. With a store, its slots supply and receive
    keys and values; without one the rows must start at position 0."""
    sizes, blocks = [len(row.tokens) for row in rows], [row.block for row in rows]
    if store is not None and worth_packing(denoiser, sizes, blocks, device):
        logits = _packed(denoiser, store, rows, device)
    else:
        logits = _padded(denoiser, store, rows, device)
    return list(torch.split(logits, [int(row.select.sum()) for row in rows]))


def _packed(denoiser: Any, store: KVStore, rows: Sequence[ForwardRow], device: torch.device) -> Tensor:
    sizes = [len(row.tokens) for row in rows]
    cache = PackedView(
        store, [row.slot for row in rows], [row.start for row in rows], sizes, [row.block for row in rows]
    )
    tokens = torch.cat([row.tokens for row in rows]).unsqueeze(0).to(device)
    positions = (
        torch.cat([torch.arange(row.start, row.start + len(row.tokens)) for row in rows]).unsqueeze(0).to(device)
    )
    select = torch.cat([row.select for row in rows]).unsqueeze(0).to(device)
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    logits: Tensor = denoiser(tokens, positions, unread, cache=cache, select=select, layout=cache)
    return logits


def _padded(denoiser: Denoiser, store: KVStore | None, rows: Sequence[ForwardRow], device: torch.device) -> Tensor:
    sizes = [len(row.tokens) for row in rows]
    width = max(sizes)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    select = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : sizes[index]] = row.tokens
        select[index, : sizes[index]] = row.select
    positions = torch.tensor([row.start for row in rows]).unsqueeze(1) + torch.arange(width)
    cache = store.view([row.slot for row in rows], [row.start for row in rows], sizes) if store is not None else None
    mask = visibility(rows, positions, cache.keys if cache else width)
    moved = [tensor.to(device) for tensor in (tokens, positions, mask, select)]
    return denoiser(moved[0], moved[1], moved[2], cache=cache, select=moved[3])


def visibility(rows: Sequence[ForwardRow], positions: Tensor, keys: int) -> Tensor:
    """[R, 1, Q, K] bool: key j is visible to a query when its block is not later and it is one of the row's own.
    positions [R, Q] int64. Source: recipe eq. 2, clean half."""
    block = torch.tensor([row.block for row in rows]).view(-1, 1, 1)
    stop = torch.tensor([row.start + len(row.tokens) for row in rows]).view(-1, 1, 1)
    key = torch.arange(keys).view(1, 1, -1)
    earlier = key // block <= positions.unsqueeze(2) // block
    return (earlier & (key < stop)).unsqueeze(1)
