# Multi-turn forward: the model's own draft is the input of the next turn, so it meets its own mistakes in training.
# Entry points: MultiTurn.
# Turn 1 is mask_and_edit. No gradient goes through a draft. LLaDA2.1 publishes neither turns nor rules; these are ours.
"""Objective `multi_turn`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.annealing import annealed
from hildanext.core.groups import grouped
from hildanext.core.linear_cross_entropy import TokenScores
from hildanext.core.noise import Corruption
from hildanext.core.objectives.mask_and_edit import MaskAndEdit, Supervision
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import Batch, Denoiser, LossReport, Pass


class MultiTurn(MaskAndEdit):
    """Mean over turns of the mask_and_edit loss; turn n+1 starts from turn n's draft, each maskable token supervised by
    the original: still masked M2T, wrong T2T, right KEEP. Source: LLaDA2.1 arXiv:2602.08676 sec. 3.1; rules are
    ours."""

    turns: int = Field(2, ge=1, description="forwards per micro-batch and view, a count")
    fill: float = Field(0.5, ge=0, le=1, description="probability that a masked position takes a token of the model")
    draft: Literal["best", "sample"] = Field(
        "best", description="the token it takes: the most likely one, or one drawn from the model's distribution"
    )
    edit_above: float | None = Field(
        None, ge=0, lt=1, description="visible tokens become the model's best above this probability; null: never"
    )

    def parts_cost(self) -> tuple[Pass, ...]:
        """One for each view and turn, one for the side term; every turn but the last scores all that can be masked."""
        reads = (1 if self.confidence > 0 else 0, 1 if self.draft == "sample" else 0)
        drafting = Pass(reads=sum(reads))
        made: list[Pass] = []
        for share in self._scored_shares():
            made += [*[drafting] * (self.turns - 1), Pass(share, reads=reads[0])]
        return (*made, Pass(causal=True)) if self.autoregressive else tuple(made)

    def parted(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> Iterator[LossReport]:
        """A report for each view and turn, in this order, one for the side term; parts are sums over turns."""
        batch = grouped(self.noise, model, annealed(batch, self._opening, rng), block, rng)
        views = self.views(model, batch, block, rng)
        normaliser = self.denominator(views, batch)
        for index, view in enumerate(views):
            given = Supervision(view, batch, batch.learn, batch.learn)
            for turn, made in enumerate(self._turns(model, given, block, (rng, len(views)))):
                own = normaliser if index == turn == 0 else torch.zeros_like(normaliser)
                yield replace(made, total=made.total / self.turns, normaliser=own)
        yield from self.side_term(model, batch, normaliser)

    def _turns(
        self, model: Denoiser, given: Supervision, block: int, drawn: tuple[torch.Generator, int]
    ) -> Iterator[LossReport]:
        rng, views = drawn
        view = given.view
        for turn in range(self.turns):
            last = turn + 1 == self.turns
            weight = self.weights(view, given.batch, share=1 / views)
            weight = self.thinned(weight, view, self.thinning(given.batch, rng, 1) if last else [])
            select = weight > 0 if last else view.maskable
            uniform = None if last else row_uniforms(given.batch, rng, 2)
            drawing = uniform[1] if uniform is not None and self.draft == "sample" else None
            turn_given = Supervision(view, given.batch, weight, select, drawing)
            report, scores = self.scored_with_tokens(model, turn_given, block, self.denominator((view,), given.batch))
            if uniform is not None:
                view = self.next_view(view, given.batch, scores, uniform[0])
            del scores
            yield report

    def next_view(self, view: Corruption, batch: Batch, scores: TokenScores, uniform: Tensor) -> Corruption:
        """The view whose tokens are the draft after an update; scores are those of all maskable positions; uniform
        [B, L] decides which masks are filled. The ELBO weight grows by 1 / (1 - fill), so its mean stays 1."""
        best = batch.tokens.masked_scatter(view.maskable, scores.best)
        filling = best if scores.drawn is None else batch.tokens.masked_scatter(view.maskable, scores.drawn)
        best = torch.where(view.m2t, filling, best)
        sure = torch.zeros_like(uniform).masked_scatter(view.maskable, scores.probability.detach().double())
        change = view.m2t & (uniform < self.fill)
        if self.edit_above is not None:
            change |= view.maskable & ~view.m2t & (sure > self.edit_above)
        tokens = torch.where(change, best, view.tokens)
        m2t = view.m2t & ~change
        t2t = view.maskable & ~m2t & (tokens != batch.tokens)
        elbo = view.elbo / (1 - self.fill) if self.fill < 1 else view.elbo
        return replace(view, tokens=tokens, m2t=m2t, t2t=t2t, elbo=elbo)
