# Random numbers that belong to a row, whoever computes it: the same for any split of a batch over ranks or workers.
# Entry points: row_uniforms, row_seed, base_seed.
# The base seed is one draw from the micro-batch's generator; ranks that hand in generators of equal state agree on it.
"""Random streams keyed by (base seed, row id)."""

from __future__ import annotations

import torch
from torch import Tensor

from hildanext.core.types import Batch

WORD = 2**64 - 1


def base_seed(rng: torch.Generator) -> int:
    """One draw from rng, in [0, 2^62)."""
    return int(torch.randint(2**62, (), generator=rng, device=rng.device).item())


def row_seed(base: int, row: int) -> int:
    """A 64-bit seed well mixed from both. Source: SplitMix64 finaliser."""
    word = (base + (row + 1) * 0x9E3779B97F4A7C15) & WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def row_uniforms(batch: Batch, rng: torch.Generator, count: int) -> Tensor:
    """[count, B, L] float64 in [0, 1) on the batch's device. Row i's numbers depend on (one draw from rng, its id in
    batch.ids) only; without ids the row's place in the batch stands in. Consumes one draw of rng."""
    rows, length = batch.tokens.shape
    base, stream = base_seed(rng), torch.Generator()
    drawn = torch.empty(rows, count, length, dtype=torch.float64)
    for place, row in enumerate(batch.ids or range(rows)):
        stream.manual_seed(row_seed(base, row))
        torch.rand(count, length, generator=stream, dtype=torch.float64, out=drawn[place])
    return drawn.transpose(0, 1).to(batch.tokens.device)
