# Randomness for the decoder; a uniform number depends on what is decided, not on when or beside whom.
# Entry points: uniform(seed, stream, positions, step, purpose).
# A counter-based hash (splitmix64's finaliser), not a torch.Generator: batch mates cannot shift a request's numbers.
"""Uniform numbers keyed by (seed, stream, position, step)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SAMPLE, CHOICE = 1, 2
Hashes = npt.NDArray[np.uint64]


def _finalise(value: Hashes) -> Hashes:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def uniform(seed: int, stream: int, positions: Tensor, step: int, purpose: int) -> Tensor:
    """[n] float64 in [0, 1) on the CPU, one per absolute position [n] int64; `stream` tells repeats of one prompt
    apart, `step` counts the forwards of the position's block, `purpose` SAMPLE (tokens) or CHOICE (positions)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        state = _finalise(np.full(positions.shape, seed % 2**64, dtype=np.uint64) + golden)
        for key in (stream % 2**64, positions.cpu().numpy().astype(np.uint64), step, purpose):
            state = _finalise((state ^ np.asarray(key, dtype=np.uint64)) + golden)
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)
