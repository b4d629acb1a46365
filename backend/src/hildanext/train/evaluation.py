# What a training run measures of its model: NLL bounds per block size, the AR NLL, repairs and false edits.
# Entry points: Evaluator (measure, causal), EDIT_THRESHOLDS.
# Rows and noise are the same at every call, so the numbers of one run can be compared. NLL is in nats per token.
"""Evaluation during training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hildanext.core.likelihood import autoregressive_nll, block_elbo
from hildanext.core.types import Batch, Denoiser

EDIT_THRESHOLDS = (0.0, 0.5, 0.9)
PLANTED = 0.1
CHUNK = 1024


@dataclass(frozen=True)
class Evaluator:
    """Fixed rows, noise seed and block sizes; `chosen`: the size the model is decoded with, which selects checkpoints
    and measures edits. PLANTED is the share of tokens replaced by another one of the batch."""

    batches: tuple[Batch, ...]
    blocks: tuple[int, ...]
    chosen: int
    samples: int = 2
    seed: int = 0

    @torch.no_grad()
    def measure(self, model: Denoiser) -> dict[str, Any]:
        """{"nll": {block: nats per token}, "repair": {tau: share of planted errors corrected},
        "false_edit": {tau: share of right tokens it would change}, "eval_nll": the bound at `chosen`}."""
        nll = {block: self._bound(model, block) for block in self.blocks}
        edits = self._edits(model, self.chosen)
        return {"nll": {str(block): value for block, value in nll.items()}, "eval_nll": nll[self.chosen], **edits}

    @torch.no_grad()
    def causal(self, model: Denoiser) -> float:
        """NLL of the model read as autoregressive, nats per token, on the positions measure() scores."""
        parts = [autoregressive_nll(model, batch) for batch in self.batches]
        return float(sum(float(part.nats) for part in parts) / max(1, sum(int(part.tokens) for part in parts)))

    def _bound(self, model: Denoiser, block: int) -> float:
        nats, tokens = 0.0, 0
        for index, batch in enumerate(self.batches):
            rng = torch.Generator().manual_seed(self.seed * 1009 + index)
            part = block_elbo(model, batch, block, rng, self.samples)
            nats, tokens = nats + float(part.nats), tokens + int(part.tokens)
        return nats / max(1, tokens)

    def _edits(self, model: Denoiser, block: int) -> dict[str, dict[str, float]]:
        counts = torch.zeros(2, len(EDIT_THRESHOLDS), dtype=torch.float64)
        sizes = torch.zeros(2, 1, dtype=torch.float64)
        for index, batch in enumerate(self.batches):
            noisy, wrong = _plant(batch, model, torch.Generator().manual_seed(self.seed * 2003 + index))
            part, size = _edit_counts(model, batch, noisy, wrong, block)
            counts, sizes = counts + part, sizes + size
        shares = (counts / sizes.clamp(min=1)).tolist()
        names = [f"{tau:g}" for tau in EDIT_THRESHOLDS]
        return {
            kind: dict(zip(names, row, strict=True)) for kind, row in zip(("repair", "false_edit"), shares, strict=True)
        }


def _plant(batch: Batch, model: Denoiser, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    device, shape = batch.tokens.device, batch.tokens.shape
    known = torch.unique(batch.tokens[batch.learn])
    wrong = batch.learn & (torch.rand(shape, generator=rng).to(device) < PLANTED)
    other = known[torch.randint(len(known), shape, generator=rng).to(device)]
    wrong &= (other != batch.tokens) & (other != model.mask_id)
    return torch.where(wrong, other, batch.tokens), wrong


def _edit_counts(model: Denoiser, batch: Batch, noisy: Tensor, wrong: Tensor, block: int) -> tuple[Tensor, Tensor]:
    features = model.noisy_features(noisy, batch, block, batch.learn)
    best, probability = _best(features, model)
    planted, truth, seen = wrong[batch.learn], batch.tokens[batch.learn], noisy[batch.learn]
    taus = torch.tensor(EDIT_THRESHOLDS, device=best.device)
    edited = (best != seen)[:, None] & (probability[:, None] > taus)
    repaired = (edited & (best == truth)[:, None] & planted[:, None]).sum(0)
    spoiled = (edited & ~planted[:, None]).sum(0)
    sizes = torch.stack([planted.sum(), (~planted).sum()])
    return torch.stack([repaired, spoiled]).double().cpu(), sizes[:, None].double().cpu()


def _best(features: Tensor, model: Denoiser) -> tuple[Tensor, Tensor]:
    head = model.head()
    found = []
    for chunk in torch.split(features, CHUNK):
        logits = (chunk.to(head.dtype) @ head.T).float()
        logits[:, model.mask_id] = -torch.inf
        found.append(logits.softmax(-1).max(-1))
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found])


def evaluation_batches(shards: Any, rows: int, batch: int, device: torch.device) -> tuple[Batch, ...]:
    """The first `rows` rows of a shard set in batches. A document's first token is not scored: the AR parent cannot."""
    return tuple(_batches(shards, min(rows, len(shards)), batch, device))


def _batches(shards: Any, rows: int, batch: int, device: torch.device) -> Iterator[Batch]:
    for start in range(0, rows, batch):
        ids = tuple(range(start, min(start + batch, rows)))
        parts = [[torch.as_tensor(field) for field in shards[i]] for i in ids]
        tokens, learn, docs = (torch.stack([part[k] for part in parts]) for k in range(3))
        made = Batch(tokens.long(), learn.bool(), docs.long(), ids).to(device)
        yield replace(made, learn=made.learn & (made.positions() > 0))
