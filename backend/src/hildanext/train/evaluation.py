# What a training run measures of its model: NLL bounds per block size, the AR NLL, repairs and false edits.
# Entry points: Evaluator (of, measure, causal).
# Rows and noise are the same at every call, so the numbers of one run can be compared. NLL is in nats per token.
"""Evaluation during training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import torch

from hildanext.config import Config
from hildanext.config.noise import NoiseConfig
from hildanext.core.batches import stacked
from hildanext.core.likelihood import autoregressive_nll, block_elbo
from hildanext.core.repair import repair_probe
from hildanext.core.types import Batch, Denoiser
from hildanext.data.shards import ShardSet
from hildanext.models.about import about
from hildanext.models.load import Loaded

PLANTED = 0.1


@dataclass(frozen=True)
class Evaluator:
    """Fixed rows, noise seed and block sizes; `chosen`: the size the model is decoded with, which selects checkpoints
    and measures edits; `noise`: the errors planted for the repair probe."""

    batches: tuple[Batch, ...]
    blocks: tuple[int, ...]
    chosen: int
    samples: int = 2
    seed: int = 0
    noise: NoiseConfig = NoiseConfig(replace=PLANTED)

    @classmethod
    def of(cls, config: Config, loaded: Loaded, shards: ShardSet, blocks: tuple[int, ...], chosen: int) -> Evaluator:
        """On the first rows of a shard set, with errors of the ids that training draws. A document's first token is not
        scored: the AR parent cannot."""
        train, known = config.train, about(loaded, config.model)
        noise = NoiseConfig(replace=PLANTED, vocabulary=known.vocabulary, forbidden=tuple(sorted(known.special)))
        rows = tuple(_batches(shards, min(train.eval_rows, len(shards)), train.batch, loaded.device))
        return cls(rows, blocks, chosen, train.eval_samples, config.seed, noise)

    @torch.no_grad()
    def measure(self, model: Denoiser) -> dict[str, Any]:
        """{"nll": {block: nats per token}, "eval_nll": the bound at `chosen`, "repair": {tau: share of planted errors
        corrected}, "false_edit": {tau: share of right tokens it would change}}; a share of nothing is None."""
        nll = {block: self._bound(model, block) for block in self.blocks}
        probes = [
            repair_probe(model, batch, self.chosen, self._rng(2003, index), self.noise)
            for index, batch in enumerate(self.batches)
        ]
        counts = {f"{tau:g}": reduce(add, (probe[tau] for probe in probes)) for tau in probes[0]}
        return {
            "nll": {str(block): value for block, value in nll.items()}, "eval_nll": nll[self.chosen],
            "repair": {tau: found.repair_rate if found.planted else None for tau, found in counts.items()},
            "false_edit": {tau: found.false_edit_rate if found.correct else None for tau, found in counts.items()},
        }  # fmt: skip

    @torch.no_grad()
    def causal(self, model: Denoiser) -> float:
        """NLL of the model read as autoregressive, nats per token, on the positions measure() scores."""
        parts = [autoregressive_nll(model, batch) for batch in self.batches]
        return float(sum(float(part.nats) for part in parts) / max(1, sum(int(part.tokens) for part in parts)))

    def _bound(self, model: Denoiser, block: int) -> float:
        nats, tokens = 0.0, 0
        for index, batch in enumerate(self.batches):
            part = block_elbo(model, batch, block, self._rng(1009, index), self.samples)
            nats, tokens = nats + float(part.nats), tokens + int(part.tokens)
        return nats / max(1, tokens)

    def _rng(self, stream: int, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * stream + index)


def _batches(shards: ShardSet, rows: int, batch: int, device: torch.device) -> Iterator[Batch]:
    for start in range(0, rows, batch):
        ids = tuple(range(start, min(start + batch, rows)))
        made = stacked((shards[index] for index in ids), ids).to(device)
        yield replace(made, learn=made.learn & (made.positions() > 0))
