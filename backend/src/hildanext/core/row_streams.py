# Random numbers that belong to a row, whoever computes it: the same for any split of a batch over ranks or workers.
# Entry points: row_uniforms, row_seeds, base_seed, finalise (the hash, also that of decoding/randomness.py).
# The base seed is one draw from the micro-batch's generator; ranks that hand in generators of equal state agree on it.
"""Random streams keyed by (base seed, row id)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hildanext.core.types import Batch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
Words = npt.NDArray[np.uint64]


def base_seed(rng: torch.Generator) -> int:
    """One draw from rng, in [0, 2^62)."""
    return int(torch.randint(2**62, (), generator=rng, device=rng.device).item())


def finalise(words: Words) -> Words:
    """Each 64-bit word mixed so that every bit depends on all of them; 0 stays 0. Source: the finaliser of SplitMix64,
    docs/papers.md (streams keyed by row)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def row_seeds(base: int, rows: Sequence[int]) -> list[int]:
    """One 64-bit seed for each row id, well mixed from base and id. Source: docs/papers.md, streams keyed by row."""
    ids = np.asarray(rows, dtype=np.int64).astype(np.uint64)
    mixed: list[int] = finalise(np.uint64(base % 2**64) + (ids + np.uint64(1)) * GOLDEN).tolist()
    return mixed


def row_uniforms(batch: Batch, rng: torch.Generator, count: int) -> Tensor:
    """[count, B, L] float64 in [0, 1) on the batch's device. Row i's numbers depend on (one draw from rng, its id in
    batch.ids) only; without ids the row's place in the batch stands in. Consumes one draw of rng."""
    rows, length = batch.tokens.shape
    base, stream = base_seed(rng), torch.Generator()
    drawn = torch.empty(rows, count, length, dtype=torch.float64)
    for place, seed in enumerate(row_seeds(base, batch.ids or range(rows))):
        stream.manual_seed(seed)
        torch.rand(count, length, generator=stream, dtype=torch.float64, out=drawn[place])
    return drawn.transpose(0, 1).to(batch.tokens.device)
