# What a training run measures of its model: NLL bounds per block size, the AR NLL, repairs and false edits.
# Entry points: Evaluator (of, measure, causal), held_out (rows to evaluate on where a run was given none).
# Rows and noise are the same at every call, and a row's noise is its own, so that no number depends on the batch. NLL
# is in nats per token, of a text and its first end token: what only fills a block is not scored.
"""Evaluation during training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import torch

from hildanext.config import Config
from hildanext.config.noise import NoiseConfig
from hildanext.core.likelihood import Estimate, autoregressive_nll, block_elbo
from hildanext.core.loss_report import scored_positions
from hildanext.core.repair import repair_probe
from hildanext.core.types import Batch, Denoiser
from hildanext.data.shards import ShardSet, scored_batch
from hildanext.data.template import end_of_turn
from hildanext.errors import DataError
from hildanext.models.about import about
from hildanext.models.load import Loaded

PLANTED = 0.1


@dataclass(frozen=True)
class Evaluator:
    """Fixed rows, noise seed and block sizes; `chosen`: the size the model is decoded with, which selects checkpoints
    and measures edits; `noise`: the errors planted for the repair probe; `ends`: ids of end tokens, without whose terms
    every NLL is given too, since an AR parent may never have seen one."""

    batches: tuple[Batch, ...]
    blocks: tuple[int, ...]
    chosen: int
    samples: int = 2
    seed: int = 0
    noise: NoiseConfig = NoiseConfig(replace=PLANTED)
    ends: frozenset[int] = frozenset()

    @classmethod
    def of(cls, config: Config, loaded: Loaded, shards: ShardSet, blocks: tuple[int, ...], chosen: int) -> Evaluator:
        """On the first rows of a shard set, with errors of the ids that training draws. A document's first token is not
        scored: the AR parent cannot. DataError where nothing of the rows is scored."""
        train, known = config.train, about(loaded, config.model)
        noise = NoiseConfig(replace=PLANTED, vocabulary=known.vocabulary, forbidden=tuple(sorted(known.special)))
        mask_id = loaded.denoiser.mask_id
        rows = tuple(_batches(shards, min(train.eval_rows, len(shards)), train.batch, mask_id))
        if not any(bool(scored_positions(batch, mask_id).any()) for batch in rows):
            raise DataError(
                f"{shards.folder}: no token to score in its first {min(train.eval_rows, len(shards))} rows, and no"
                " checkpoint could be called the best; give evaluation documents, or raise train.eval_rows"
            )
        own = tuple(batch.to(loaded.device) for batch in rows)
        return cls(own, blocks, chosen, train.eval_samples, config.seed, noise, _ends(loaded, shards))

    @torch.no_grad()
    def measure(self, model: Denoiser) -> dict[str, Any]:
        """{"nll": {block: nats per token}, "eval_nll": the bound at `chosen`, both also `_without_ends`, "repair":
        {tau: share of planted errors corrected}, "false_edit": {tau: share of right tokens it would change}}; a share
        of nothing is None."""
        found = {block: self._bound(model, block) for block in self.blocks}
        nll, bare = ({block: pair[index] for block, pair in found.items()} for index in (0, 1))
        probes = [repair_probe(model, batch, self.chosen, self._rng(2003), self.noise) for batch in self.batches]
        counts = {f"{tau:g}": reduce(add, (probe[tau] for probe in probes)) for tau in probes[0]}
        return {
            "nll": {str(block): value for block, value in nll.items()}, "eval_nll": nll[self.chosen],
            "nll_without_ends": {str(block): value for block, value in bare.items()},
            "eval_nll_without_ends": bare[self.chosen],
            "repair": {tau: found.repair_rate if found.planted else None for tau, found in counts.items()},
            "false_edit": {tau: found.false_edit_rate if found.correct else None for tau, found in counts.items()},
        }  # fmt: skip

    @torch.no_grad()
    def causal(self, model: Denoiser) -> tuple[float | None, float | None]:
        """NLL of the model read as autoregressive, nats per token, on the positions measure() scores: with the end
        tokens, and without them. None for nothing scored."""
        return _per_token(reduce(add, (autoregressive_nll(model, batch, self.ends) for batch in self.batches)))

    def _bound(self, model: Denoiser, block: int) -> tuple[float | None, float | None]:
        parts = (block_elbo(model, batch, block, self._rng(1009), self.samples, self.ends) for batch in self.batches)
        return _per_token(reduce(add, parts))

    def _rng(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * stream % 2**63)


def _per_token(found: Estimate) -> tuple[float | None, float | None]:
    values = (found.nats_per_token, found.nats_per_token_without_ends)
    whole, bare = (None if math.isnan(value) else value for value in values)
    return whole, bare


def _batches(shards: ShardSet, rows: int, batch: int, mask_id: int) -> Iterator[Batch]:
    for start in range(0, rows, batch):
        made = scored_batch(shards, range(start, min(start + batch, rows)), mask_id)
        yield replace(made, learn=made.learn & (made.positions() > 0))


def _ends(loaded: Loaded, shards: ShardSet) -> frozenset[int]:
    tokenizer, found = loaded.tokenizer, {*loaded.denoiser.end_ids, int(shards.manifest["pad_id"])}
    found |= {tokenizer.eos_token_id} - {None}
    return frozenset(found | ({end_of_turn(tokenizer).id} if shards.manifest.get("chat_template") else set()))


def held_out(train: ShardSet, evaluation: ShardSet, most: int) -> tuple[ShardSet, ShardSet, str]:
    """(rows to train on, rows to evaluate on, what was done, empty where nothing was). Where the evaluation split has
    no row, the first twentieth of the training rows, `most` at most, is held out of training. DataError where there is
    one row alone. Source: docs/training.md, rows to evaluate on."""
    if len(evaluation):
        return train, evaluation, ""
    if len(train) < 2:
        raise DataError(
            f"{evaluation.folder}: no rows, and {train.folder} has {len(train)}, of which none can be held out; prepare"
            " more documents, or give evaluation documents"
        )
    count = max(1, min(most, len(train) // 20))
    words = (
        f"{evaluation.folder} has no rows: {count} of the {len(train)} rows of {train.folder} are held out of training"
        " and evaluated on; give evaluation documents, or raise data.eval_share, to choose them yourself"
    )
    return train.part(count, len(train)), train.part(0, count), words
