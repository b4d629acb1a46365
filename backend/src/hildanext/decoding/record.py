# What is kept of each token where somebody asked: the step it was last written in, how often, and its log-probability.
# Entry points: Record (of a request at work; what its result holds is request.TokenRecord).
# A log-probability is conditional on the canvas of that step, both sides of the token in its block, not left to right.
# Letters: Q positions of a block, n of them looked at, V vocabulary.
"""The record of a generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hildanext.core.head import exclude_token
from hildanext.core.types import Canvas
from hildanext.decoding.request import Alternative, TokenRecord
from hildanext.decoding.text import TextStream


@dataclass
class Record:
    """By position of the canvas. alternatives: kept per token, a count; step, writes [length] int64; logprob [length]
    float64; top: (ids, log-probabilities) of the positions written."""

    alternatives: int
    length: int
    step: Tensor = field(init=False)
    writes: Tensor = field(init=False)
    logprob: Tensor = field(init=False)
    top: dict[int, tuple[list[int], list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.step, self.writes = torch.zeros(2, self.length, dtype=torch.long)
        self.logprob = torch.full((self.length,), torch.nan, dtype=torch.float64)

    def shift(self, start: int, moved: Tensor) -> None:
        """The tokens of the block at `start` came from `moved` [Q] int64 (-1: a new [MASK]), and what is noted of them
        goes with them."""
        own, source = slice(start, start + len(moved)), moved.clamp(min=0) + start
        fresh = moved < 0
        self.step[own] = self.step[source].masked_fill(fresh, 0)
        self.writes[own] = self.writes[source].masked_fill(fresh, 0)
        self.logprob[own] = self.logprob[source].masked_fill(fresh, torch.nan)
        kept = {start + to: self.top[at + start] for to, at in enumerate(moved.tolist()) if at + start in self.top}
        inside = range(start, start + len(moved))
        self.top = {place: one for place, one in self.top.items() if place not in inside} | kept

    def write(self, start: int, seen: Canvas, looked: Tensor, tokens: Tensor, scores: Tensor, step: int) -> None:
        """Note what a step writes into the block at `start`: tokens [Q] int64 where they differ from the canvas it saw.
        looked [Q] bool: positions of the rows of scores [n, V], the model's own logits, which are overwritten."""
        written = (tokens != seen.tokens) & (tokens != seen.mask_id)
        rows = written[looked].nonzero()[:, 0]
        places = written.nonzero()[:, 0]
        if not len(places):
            return
        logs = exclude_token(scores[rows.to(scores.device)].float(), seen.mask_id).log_softmax(dim=1).cpu()
        own = places + start
        self.step[own] = step
        self.writes[own] += 1
        self.logprob[own] = logs.gather(1, tokens[places, None])[:, 0].double()
        if self.alternatives:
            # [MASK] is no alternative
            best = logs.topk(min(self.alternatives, logs.shape[1] - 1), dim=1)
            found = zip(own.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
            self.top |= {place: (ids, values) for place, ids, values in found}

    def traced(self, place: int) -> dict[str, float | int | None]:
        """What a trace says of a visible position beside its token."""
        step = int(self.step[place])
        logprob = float(self.logprob[place]) if step else None
        return {"step": step, "edits": max(0, int(self.writes[place]) - 1), "logprob": logprob}

    def tokens(self, first: int, ids: Sequence[int], text: TextStream) -> Iterator[TokenRecord]:
        """The records of `ids`, which stand from position `first` on."""
        for place, token in enumerate(ids, first):
            step, logprob, edits = (self.traced(place)[name] for name in ("step", "logprob", "edits"))
            top = zip(*self.top.get(place, ((), ())), strict=True)
            others = tuple(Alternative(other, text.piece(other), value, text.raw(other)) for other, value in top)
            shown = text.shown(token)
            yield TokenRecord(token, shown, int(step or 0), int(edits or 0), logprob, others, text.raw(token))
