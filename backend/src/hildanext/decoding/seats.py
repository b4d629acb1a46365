# Who sits in which forward: rows of several requests, side by side where their slots are, apart where they have none.
# Entry points: Seat, parties (the seats of each forward), seated (run one).
# Consecutive slots share a padded forward; requests with keys of their own (kept_keys.py) share a packed one.
"""Seats of forwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hildanext.core.types import Denoiser
from hildanext.decoding.forward import ForwardRow, forward, forward_kept
from hildanext.decoding.kept_keys import KeptRow
from hildanext.decoding.state import Live
from hildanext.decoding.store import StateStore


@dataclass(frozen=True)
class Seat:
    """One row of a forward: whose, and which of its sequences (1: the one guidance subtracts)."""

    live: Live
    lane: int
    row: ForwardRow


def parties(seats: Sequence[Seat], cached: bool) -> list[list[Seat]]:
    """The seats of each forward; cached: whether rows have slots."""
    if not cached:
        return [list(seats)] if seats else []
    own = [seat for seat in seats if seat.live.kept]
    runs: list[list[Seat]] = []
    for seat in sorted([seat for seat in seats if not seat.live.kept] if own else seats, key=_slot):
        if runs and runs[-1][-1].row.slot + 1 == seat.row.slot:
            runs[-1].append(seat)
        else:
            runs.append([seat])
    return [*runs, own] if own else runs


def _slot(seat: Seat) -> int:
    return seat.row.slot


def seated(denoiser: Denoiser, store: StateStore | None, party: Sequence[Seat]) -> list[Tensor]:
    """Logits of each seat from one forward."""
    rows = [seat.row for seat in party]
    if not party[0].live.kept:
        return forward(denoiser, store, rows, denoiser.device)
    return forward_kept(denoiser, [_kept(seat) for seat in party], rows, denoiser.device)


def _kept(seat: Seat) -> KeptRow:
    row, blocks = seat.row, seat.live.canvas.blocks
    return KeptRow(seat.live.kept[seat.lane], row.start, row.tokens.shape[0], blocks.block, blocks.length)
