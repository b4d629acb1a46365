# Training for carry-over: masked positions are shown what was predicted there, as decoding with a carry shows it.
# Entry points: CarryOver.
# The prediction comes from a frozen reference model on the same noised input, or from the model in training by a pass
# without a gradient. A share of the rows stays plain, because the first forward of a block has nothing to carry.
"""Objective `carry`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from hildanext.config.decode import CarrySection
from hildanext.core.carry import Carry, Likely, likely
from hildanext.core.head import row_slices
from hildanext.core.linear_cross_entropy import TokenScores
from hildanext.core.mixture import Mixes, Mixture
from hildanext.core.noise import Corruption
from hildanext.core.objectives.mask_and_edit import MaskAndEdit, Supervision
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import About, Batch, Denoiser, LossReport, Pass
from hildanext.errors import ConfigError
from hildanext.registry import build


@dataclass(frozen=True)
class Carried(Corruption):
    """A view with, per row, whether it carries [B] bool, and what the forward before it saw: tokens [B, L]."""

    carries: Tensor
    before: Tensor


class CarryOver(MaskAndEdit):
    """mask_and_edit whose masked inputs are the carry of a prediction made, without a gradient, of the same noised row.
    Source: Residual Context Diffusion arXiv:2601.22954 alg. 1; plain rows and the more masked input are ours."""

    carry: CarrySection = Field(CarrySection(type="rcd"), description="plugin of core/carries: what is carried")
    reference: str = Field(
        "", description="folder of the model whose predictions are carried, with this tokenizer; empty: its own"
    )
    plain: float = Field(0.3, ge=0.0, le=1.0, description="share of the rows in which nothing is carried")
    behind: float = Field(
        0.0, ge=0.0, lt=1.0,
        description="probability that a visible token was still masked when the prediction was made, as it is in"
        " decoding where the forward before filled it",
    )  # fmt: skip

    _rule: Carry | None = PrivateAttr(None)
    _source: Denoiser | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self._views_together:
            raise ValueError(
                "both views share a forward here, and a carry wants one each; give confidence_over=normaliser, and"
                " views_beside=false"
            )
        return self

    @property
    def companions(self) -> tuple[str, ...]:
        """The reference, where it is named."""
        return (self.reference,) if self.reference else ()

    def parts_cost(self) -> tuple[Pass, ...]:
        """Those of mask_and_edit, each view with a pass before it."""
        made = super().parts_cost()
        return tuple(one if one.causal else replace(one, drafts=one.drafts + 1, reads=one.reads + 1) for one in made)

    def prepare(self, about: About) -> Self:
        """With its rule and its reference at hand."""
        made, rule = super().prepare(about), build("carries", self.carry, "objective.carry")
        if rule.filled:
            raise ConfigError(
                f"objective.carry: {self.carry.type} carries tokens that were filled in; train for it with own_errors"
            )
        made._rule, made._source = rule, about.load(self.reference) if self.reference else None
        return made

    def views(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """The drawn views, each with the rows that carry and what the forward before saw."""
        drawn, (rows, places) = super().views(model, batch, block, rng), row_uniforms(batch, rng, 2)
        carries = rows[:, 0] >= self.plain
        return tuple(self._carried(view, carries, places, model.mask_id) for view in drawn)

    def _carried(self, view: Corruption, carries: Tensor, places: Tensor, mask_id: int) -> Carried:
        hidden = view.maskable & (places < self.behind)
        return Carried(**vars(view), carries=carries, before=view.tokens.masked_fill(hidden, mask_id))

    def scored_with_tokens(
        self, model: Denoiser, given: Supervision, block: int, normaliser: Tensor
    ) -> tuple[LossReport, TokenScores]:
        """As mask_and_edit's, with the carry in the input."""
        mixture = self._mixture(model, given, block)
        if mixture is None:
            return super().scored_with_tokens(model, given, block, normaliser)
        if not isinstance(model, Mixes):
            raise ConfigError(f"objective.carry: {type(model).__name__} takes no mixtures of embeddings")
        with model.mixing(mixture):
            return super().scored_with_tokens(model, given, block, normaliser)

    @torch.no_grad()
    def _mixture(self, model: Denoiser, given: Supervision, block: int) -> Mixture | None:
        view, rule = given.view, self._rule or build("carries", self.carry, "objective.carry")
        if not isinstance(view, Carried):
            raise ValueError("objective carry: a view that it did not draw")
        asked = view.m2t & view.carries[:, None]
        if not bool(asked.any()):
            return None
        source = model if self._source is None else self._source
        features = source.noisy_features(view.before, given.batch, block, asked)
        found = _likely(features, source.head(), model.mask_id, rule)
        rows, columns = asked.nonzero(as_tuple=True)
        return rule.carried(found, 0).mixture(model.mask_id, rows, columns, rule.norms)


def _likely(features: Tensor, head: Tensor, mask_id: int, rule: Carry) -> Likely:
    parts = list[Likely]()
    for rows in row_slices(len(features), len(head), copies=4):
        parts.append(likely(features[rows] @ head.T, mask_id, rule.top_k, rule.temperature))
    names = ("ids", "probability", "spread")
    return Likely(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
