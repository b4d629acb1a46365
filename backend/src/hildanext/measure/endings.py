# Likelihoods of many short endings, each behind a context of its own: read left to right, or bounded by the block ELBO.
# Entry points: Ending (of, behind), causal, bounds. Endings of similar length share a forward.
# A block of the bound with few scored tokens is enumerated: its mask patterns are few, and the number has no noise.
"""Scoring endings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hildanext.core.batches import document_batch
from hildanext.core.likelihood import Estimate, autoregressive_nll, block_elbo
from hildanext.core.types import Batch, Denoiser
from hildanext.measure.scoring import pair_batch


@dataclass(frozen=True)
class Ending:
    """Token ids of a context with its ending, the index of the ending's first token, and the ending's characters."""

    ids: tuple[int, ...]
    first: int
    characters: int

    @classmethod
    def of(cls, loaded: Any, context: str | Sequence[int], text: str) -> Ending:
        """A text behind a context (a text, or ids as they are); a context beyond the window loses its beginning."""
        batch = pair_batch(loaded.tokenizer, context, text, loaded.denoiser.window)
        return cls(tuple(batch.tokens[0].tolist()), int((~batch.learn[0]).sum()), len(text))

    def most(self, block: int) -> int:
        """The most scored tokens that it has in one block."""
        first, last = self.first // block, (len(self.ids) - 1) // block
        if first == last:
            return len(self.ids) - self.first
        return block if last > first + 1 else max((first + 1) * block - self.first, len(self.ids) - last * block)


def causal(denoiser: Denoiser, endings: Sequence[Ending], rows: int) -> list[float]:
    """-log p(ending | context) of each, nats, under the model read left to right, `rows` to a forward."""
    return _batched(denoiser, endings, rows, 1, lambda batch: autoregressive_nll(denoiser, batch))


def bounds(
    denoiser: Denoiser, endings: Sequence[Ending], block: int, samples: int, exact: int, rows: int
) -> tuple[list[float], list[bool]]:
    """An upper bound on the nats of each ending at this block size, and whether it is exact: by enumeration where no
    block has more than `exact` scored tokens (at most 8), else the mean of `samples` Monte-Carlo draws."""
    counted = [block == 1 or ending.most(block) <= exact for ending in endings]
    found: list[float] = [0.0] * len(endings)
    for enumerated in (True, False):
        indices = [index for index, one in enumerate(counted) if one == enumerated]
        draws, part = (0 if enumerated else samples), [endings[index] for index in indices]

        def bound(batch: Batch, draws: int = draws) -> Estimate:
            return block_elbo(denoiser, batch, block, torch.Generator().manual_seed(0), draws)

        for index, nats in zip(indices, _batched(denoiser, part, rows, block, bound), strict=True):
            found[index] = nats
    return found, counted


def _batched(
    denoiser: Denoiser, endings: Sequence[Ending], rows: int, block: int, score: Callable[[Batch], Estimate]
) -> list[float]:
    order = sorted(range(len(endings)), key=lambda each: (endings[each].most(block), len(endings[each].ids)))
    found: list[float] = [0.0] * len(endings)
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        documents = [(endings[index].ids, endings[index].first) for index in part]
        scored = score(document_batch(documents, 0, block).to(denoiser.device)).documents
        for index, (nats, _) in zip(part, scored, strict=True):
            found[index] = nats
    return found
