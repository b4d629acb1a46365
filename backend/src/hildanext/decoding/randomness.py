# Randomness for the decoder; a uniform number depends on what is decided, not on when or beside whom.
# Entry points: uniform(seed, stream, positions, step, purpose), chosen(seed).
# A counter-based hash, not a torch.Generator: batch mates cannot shift a request's numbers.
"""Uniform numbers keyed by (seed, stream, position, step)."""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor

from hildanext.core.row_streams import GOLDEN, finalise

SAMPLE, CHOICE = 1, 2


def chosen(seed: int) -> int:
    """The seed; for -1 (config.decode.FRESH) a fresh one below 2**31, which every client's integers can hold."""
    return seed if seed >= 0 else secrets.randbelow(1 << 31)


def uniform(seed: int, stream: int, positions: Tensor, step: int, purpose: int) -> Tensor:
    """[n] float64 in [0, 1) on the CPU, one per absolute position [n] int64; `stream` tells repeats of one prompt
    apart, `step` counts the forwards of the position's block, `purpose` SAMPLE (tokens) or CHOICE (positions)."""
    with np.errstate(over="ignore"):
        state = finalise(np.full(positions.shape, seed % 2**64, dtype=np.uint64) + GOLDEN)
        for key in (stream % 2**64, positions.cpu().numpy().astype(np.uint64), step, purpose):
            state = finalise((state ^ np.asarray(key, dtype=np.uint64)) + GOLDEN)
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)
