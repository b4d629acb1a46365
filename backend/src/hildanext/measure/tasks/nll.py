# Task `nll`: nats per token, read left to right and bounded by the block ELBO at several block sizes.
# Entry points: Nll.
# Over a folder of shards, or over fresh stories of the story world, whose true entropy is then reported beside it.
"""Task plugin nll."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field

from hildanext.config.base import SEEDS
from hildanext.core.batches import document_batch
from hildanext.core.likelihood import Estimate, autoregressive_nll, block_elbo
from hildanext.core.types import Batch
from hildanext.data.tokenizers import begun
from hildanext.errors import DataError
from hildanext.measure.task import EvalContext, Outcome, Task
from hildanext.report.intervals import Measure, Z, ratio


class Nll(Task):
    """Nats per token with intervals over documents, each also without the terms of end tokens, which a parent may never
    have seen; the Monte-Carlo error of the bound is in the series. Fillers of blocks are not scored."""

    version: ClassVar[int] = 2
    shards: str = Field("", description="folder of tokenized rows; empty: stories of the story world")
    limit: int = Field(64, ge=1, description="rows or stories")
    blocks: tuple[int, ...] = Field((1, 4, 16, 32), description="block sizes of the bound, tokens")
    samples: int = Field(8, ge=0, description="Monte-Carlo draws; 0: exact, blocks of at most 8")
    autoregressive: bool = Field(True, description="also the exact NLL of the model read left to right")
    rows: int = Field(16, ge=1, description="rows of a forward")
    seed: int = Field(7_000_001, ge=0, lt=SEEDS, description="seed of stories and draws")

    def ready(self) -> None:
        """Open the shards, which hold rows."""
        from hildanext.data.shards import ShardSet

        if self.shards and not len(ShardSet.open(self.shards)):
            raise DataError(f"eval.tasks.nll.shards: {self.shards} has no rows; give a split that has")

    def run(self, context: EvalContext) -> Outcome:
        """Score all rows under every reading."""
        batches, truth = self._batches(context.loaded)
        ends = {*context.loaded.denoiser.end_ids, int(context.loaded.tokenizer.eos_token_id)}
        ends |= {int(self._opened().manifest["pad_id"])} if self.shards else set()
        measures: dict[str, Measure] = {} if truth is None else {"true_entropy": truth}
        points: list[dict[str, Any]] = []
        with context.console.bar("nll", len(self.blocks) + self.autoregressive) as bar:
            if self.autoregressive:
                found = [autoregressive_nll(context.loaded.denoiser, batch, ends) for batch in batches]
                measures |= _measures("autoregressive", found)
                bar.advance()
            for block in self.blocks:
                found = [
                    block_elbo(context.loaded.denoiser, batch, block, self._rng(), self.samples, ends)
                    for batch in batches
                ]
                measures |= _measures(f"block_{block}", found)
                points.append(_point(block, found))
                bar.advance()
        tokens = int(sum(one.tokens for one in found)) if measures else 0
        counts = {"rows": sum(len(batch.tokens) for batch in batches), "tokens": tokens}
        counts["documents"] = sum(len(one.documents) for one in found) if measures else 0
        return Outcome(measures, counts, (), {"bound": points})

    def _batches(self, loaded: Any) -> tuple[list[Batch], Measure | None]:
        device = loaded.denoiser.device
        if self.shards:
            return [batch.to(device) for batch in self._from_shards(loaded)], None
        words, cut = loaded.tokenizer, math.lcm(*self.blocks, 1)
        batches, truth = story_batches(words, self.seed, self.limit, self.rows, cut, loaded.meta.document_start)
        return [batch.to(device) for batch in batches], truth

    def _rng(self) -> torch.Generator:
        # the same for every batch: a row's draws are keyed by its number, whichever batch it is in
        return torch.Generator().manual_seed(self.seed)

    def _opened(self) -> Any:
        from hildanext.data.shards import ShardSet

        return ShardSet.open(self.shards)

    def _from_shards(self, loaded: Any) -> Iterator[Batch]:
        from hildanext.data.loader import order
        from hildanext.data.shards import check_tokenizer, scored_batch

        shards = self._opened()
        check_tokenizer(shards, loaded.tokenizer)
        chosen = order(len(shards), self.seed, 0)[: self.limit].tolist()
        for start in range(0, len(chosen), self.rows):
            yield scored_batch(shards, chosen[start : start + self.rows], loaded.denoiser.mask_id)


def story_batches(
    tokenizer: Any, seed: int, count: int, rows: int, multiple: int = 1, start: Sequence[int] | None = None
) -> tuple[list[Batch], Measure]:
    """Held-out stories from `start` (None: what the tokenizer puts there) to EOS, `rows` to a batch, lengths rounded up
    to `multiple`, and their true nats per scored token: from the second sentence on, since a document's first token is
    never scored."""
    from hildanext.world import story

    documents, nats = [], []
    for index in range(count):
        told = story(f"{seed}:{index}")
        whole, first = (_ids(tokenizer, text, start) for text in (told.text, told.sentences[0]))
        documents.append(([*whole, int(tokenizer.eos_token_id)], len(first)))
        nats.append(-math.fsum(told.gains[1:]))
    batches = [
        document_batch(documents[part.start : part.stop], int(tokenizer.eos_token_id), multiple, tuple(part))
        for part in (range(start, min(start + rows, count)) for start in range(0, count, rows))
    ]
    return batches, ratio(nats, [float(len(ids) - first) for ids, first in documents], "nats per token")


def _ids(tokenizer: Any, text: str, start: Sequence[int] | None) -> list[int]:
    return begun(list(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenizer, start)


def _measures(name: str, found: Sequence[Estimate]) -> dict[str, Measure]:
    both = {name: [pair for one in found for pair in one.documents]}
    both[f"{name}_without_ends"] = [pair for one in found for pair in one.without_ends]
    if not both[name]:
        raise DataError("eval.tasks.nll: nothing in these rows is scored; give rows with learned tokens")
    return {
        label: ratio([nats for nats, _ in pairs], [float(tokens) for _, tokens in pairs], "nats per token")
        for label, pairs in both.items()
        if pairs
    }


def _point(block: int, found: Sequence[Estimate]) -> dict[str, Any]:
    tokens = sum(one.tokens for one in found)
    error = math.sqrt(sum(0.0 if math.isnan(one.standard_error) else one.standard_error**2 for one in found)) / tokens
    value = sum(one.nats for one in found) / tokens
    return {"x": block, "y": value, "standard_error": error, "low": value - Z * error, "high": value + Z * error}
