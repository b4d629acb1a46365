# Order-token search: a beam over which positions are filled next and with what, within a block.
# Entry points: OrderToken.
# As published it scores with the whole answer in view, which a block-causal model does not have; adapted: a step's
# tokens are scored in the completed block with only them masked again. Beams end with the block: the best is committed.
"""Policy `order_token`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.types import Canvas
from hildanext.decoding.policy import best_first, quota
from hildanext.decoding.search import Course, Draws, Search


@dataclass(frozen=True)
class _Beam:
    score: float
    tokens: Tensor


@dataclass(frozen=True)
class _Child:
    before: float
    tokens: Tensor
    new: Tensor
    whole: Tensor


class OrderToken(Search):
    """Every beam draws `children` fillings of the step's quota from log p + temperature x Gumbel noise; each is scored
    by the sum of log p of what it filled, given the block completed with the beam's guesses, only that masked; the best
    `beams` go on. Source: Order-Token Search arXiv:2601.20339, adapted to blocks: docs/decoding-methods.md."""

    beams: int = Field(4, ge=1, le=4096, description="states kept after a step, a count; 1: greedy, nothing is scored")
    children: int = Field(4, ge=1, le=4096, description="fillings tried from each state, a count")
    width: int = Field(4, ge=1, le=4096, description="likeliest tokens of a position that may be filled in, a count")
    order_temperature: float = Field(
        0.0, ge=0.0, le=100.0, description="of the noise on log p; 0: the likeliest positions and tokens, in order"
    )

    def search(self, canvas: Canvas, draws: Draws) -> Course:
        """The beams of one block, two forwards a step (one with a single beam)."""
        beams, step = [_Beam(0.0, canvas.tokens)], 0
        while bool((beams[0].tokens == canvas.mask_id).any()):
            logs = (yield torch.stack([beam.tokens for beam in beams])).log_softmax(dim=2)
            count = max(1, quota(canvas.masks, self.steps or max(1, canvas.masks), step))
            children = list[_Child]()
            for number, (beam, own) in enumerate(zip(beams, logs, strict=True)):
                children += self._children(beam, own, canvas.mask_id, count, self._noise(own, draws, step, number))
            if self.beams == 1:
                beams = [_Beam(0.0, children[0].tokens)]
            else:
                asked = torch.stack([one.whole.masked_fill(one.new, canvas.mask_id) for one in children])
                beams = self._best(children, (yield asked).log_softmax(dim=2))
            step += 1
        return beams[0].tokens

    def _noise(self, logs: Tensor, draws: Draws, step: int, number: int) -> Tensor | None:
        if not self.order_temperature:
            return None
        ranks = range(min(self.width, logs.shape[1] - 1))
        drawn = torch.stack([draws(step, number * self.width + rank) for rank in ranks], dim=1)
        return -self.order_temperature * torch.log(-torch.log(drawn.clamp(1e-300, 1 - 1e-16)))

    def _children(self, beam: _Beam, logs: Tensor, mask_id: int, count: int, noise: Tensor | None) -> list[_Child]:
        hidden = beam.tokens == mask_id
        values, ids = logs.topk(min(self.width, logs.shape[1] - 1), dim=1)
        ranked = values.double() if noise is None else values.double() + noise
        guess = torch.where(hidden, logs.argmax(dim=1), beam.tokens)
        own = ids.gather(1, ranked.argmax(dim=1, keepdim=True))[:, 0]
        places, ranks = hidden.nonzero().flatten().tolist(), range(ids.shape[1])
        pairs = sorted(((float(ranked[i, rank]), -i, -rank) for i in places for rank in ranks), reverse=True)
        made = list[_Child]()
        for _, place, rank in pairs[: self.children if self.beams > 1 else 1]:
            first = torch.zeros_like(hidden)
            first[-place] = True
            new = first | best_first(ranked.amax(dim=1), hidden & ~first, count - 1)
            filling = torch.where(first, ids[-place, -rank], own)
            made.append(
                _Child(beam.score, torch.where(new, filling, beam.tokens), new, torch.where(new, filling, guess))
            )
        return made

    def _best(self, children: list[_Child], logs: Tensor) -> list[_Beam]:
        found = dict[tuple[int, ...], _Beam]()
        for child, own in zip(children, logs, strict=True):
            gained = own.gather(1, child.whole[:, None])[:, 0][child.new].double().sum()
            state, score = tuple(child.tokens.tolist()), child.before + float(gained)
            if state not in found or found[state].score < score:
                found[state] = _Beam(score, child.tokens)
        return sorted(found.values(), key=lambda beam: -beam.score)[: self.beams]
