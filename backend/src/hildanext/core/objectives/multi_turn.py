# Multi-turn forward: the model's own draft is the input of the next turn, so it meets its own mistakes in training.
# Entry points: MultiTurn.
# Turn 1 is mask_and_edit. No gradient goes through a draft. LLaDA2.1 publishes neither turns nor rules; these are ours.
"""Objective `multi_turn`."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.linear_cross_entropy import TokenScores
from hildanext.core.loss_report import merged
from hildanext.core.noise import Corruption
from hildanext.core.objectives.mask_and_edit import MaskAndEdit, Supervision
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import Batch, Denoiser, LossReport


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

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        """The report of one micro-batch, `turns` forwards for each view; parts are sums over turns."""
        views = self.views(model, batch, block, rng)
        normaliser = self.denominator(views, batch)
        reports = []
        for view in views:
            reports += self._turns(model, Supervision(view, batch, batch.learn, batch.learn), block, (rng, len(views)))
        made = merged(reports)
        total = made.total / self.turns
        return self.with_side_term(model, batch, LossReport(total, normaliser, made.parts, made.counts))

    def _turns(
        self, model: Denoiser, given: Supervision, block: int, drawn: tuple[torch.Generator, int]
    ) -> list[LossReport]:
        rng, views = drawn
        view, reports = given.view, []
        for turn in range(self.turns):
            weight = self.weights(view, given.batch, share=1 / views)
            select = view.maskable if turn + 1 < self.turns else weight > 0
            uniform = row_uniforms(given.batch, rng, 2) if turn + 1 < self.turns else None
            drawing = uniform[1] if uniform is not None and self.draft == "sample" else None
            turn_given = Supervision(view, given.batch, weight, select, drawing)
            normaliser = self.denominator((view,), given.batch)
            report, scores = self.scored_with_tokens(model, turn_given, block, normaliser)
            reports.append(report)
            if uniform is not None:
                view = self.next_view(view, given.batch, scores, uniform[0])
        return reports

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
