# Distillation from the AR parent: at masked positions, KL to its next-token distribution beside cross-entropy.
# Entry points: Distill.
# mask_and_edit with one more term; T2T and KEEP are its own. The parent reads the clean text once, causally, whatever
# the blocks: under adapters it is the model itself with them off, else a frozen copy. It does not see what stands right
# of a position in its block, so a share of cross-entropy on the data token (m2t_weight) stays by default.
"""Objective `distill`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from hildanext.core.linear_kl import Teacher, weighted_kl
from hildanext.core.noise import Corruption
from hildanext.core.objectives.mask_and_edit import MaskAndEdit, Supervision
from hildanext.core.types import About, Batch, Denoiser, LossReport, Pass
from hildanext.errors import ConfigError


@dataclass(frozen=True)
class _Taught:
    features: Tensor
    head: Tensor
    place: Tensor
    share: float


class Distill(MaskAndEdit, m2t_weight=0.5):
    """mask_and_edit + lambda_d sum_M2T w(t) KL(parent(token | clean text before it) || model) / normaliser. The first
    token of a document has no teacher: the data token stands in for one, with the same weight.
    Source: OPDLM arXiv:2606.06712, its objective; weights and the mix with cross-entropy are ours."""

    parent: str = Field(
        "",
        description="folder of the AR parent; empty: the folder the run began from, under adapters the model without "
        "them, which costs no memory",
    )
    kl_weight: float = Field(0.5, ge=0, description="factor of the KL term (lambda_d); 0: mask_and_edit, no parent")
    direction: Literal["forward", "reverse"] = Field(
        "forward", description="forward: KL(parent || model), covers all the parent says; reverse: seeks its mode"
    )
    temperature: float = Field(
        1.0, ge=0.05, le=100, description="of both distributions; the divergence is multiplied by its square"
    )
    top_k: int = Field(0, ge=0, description="the KL is over the parent's k likeliest tokens, renormalised; 0: over all")

    _teacher: Denoiser | None = PrivateAttr(None)
    _without_adapters: Callable[[], AbstractContextManager[None]] | None = PrivateAttr(None)

    @property
    def companions(self) -> tuple[str, ...]:
        """The parent, where it is named."""
        return (self.parent,) if self.parent and self.kl_weight else ()

    @property
    def compares_with_origin(self) -> bool:
        """Whether the parent is what the run began from."""
        return not self.parent and self.kl_weight > 0

    def prepare(self, about: About) -> Self:
        """With its parent at hand. ConfigError where none is named and the run began from no AR model."""
        made = super().prepare(about)
        if self.kl_weight == 0:
            return made
        if self.compares_with_origin and not about.origin:
            raise ConfigError(
                "objective.parent: none is named, and model.path is no AR model (it is new, or hildanext.json records a"
                " conversion); set objective.parent to the folder of the AR parent"
            )
        if self.compares_with_origin and about.parent is not None:
            made._without_adapters = about.parent
        else:
            made._teacher = about.load(self.parent or about.origin)
        return made

    def weights(self, view: Corruption, batch: Batch, share: float = 1.0) -> Tensor:
        """Those of mask_and_edit; a masked first token of a document has the weight of its KL too."""
        weight = super().weights(view, batch, share)
        if self.kl_weight == 0:
            return weight
        return weight + torch.where(batch.positions() == 0, self._kl_weights(view, batch, share), 0.0)

    def _kl_weights(self, view: Corruption, batch: Batch, share: float) -> Tensor:
        only = self.model_copy(update={"m2t_weight": self.kl_weight, "t2t_weight": 0.0, "keep_weight": 0.0})
        return MaskAndEdit.weights(only, view, batch, share)

    def chosen(self, view: Corruption, weight: Tensor) -> Tensor:
        """The masked positions too where cross-entropy on the data has no weight."""
        return super().chosen(view, weight) | view.m2t if self.kl_weight else super().chosen(view, weight)

    def parts_cost(self) -> tuple[Pass, ...]:
        """Those of mask_and_edit, the parent's head read once more for each forward over masks."""
        made = super().parts_cost()
        return tuple(one if one.causal or not self.kl_weight else replace(one, reads=one.reads + 1) for one in made)

    def _scored_shares(self) -> list[float]:
        return MaskAndEdit._scored_shares(self.model_copy(update={"m2t_weight": self.m2t_weight + self.kl_weight}))

    @torch.no_grad()
    def prior(self, model: Denoiser, batch: Batch, views: tuple[Corruption, ...]) -> _Taught | None:
        """The parent's features wherever one of the views is masked, from its one pass over the clean text."""
        if self.kl_weight == 0:
            return None
        asked = torch.stack([view.m2t for view in views]).any(dim=0) & (batch.positions() > 0)
        with self._without_adapters() if self._without_adapters else nullcontext():
            source = model if self._teacher is None else self._teacher
            features, head = source.causal_features(batch, asked), source.head().detach()
        if len(head) != model.vocab_size:
            raise ConfigError(
                f"objective.parent: its output matrix has {len(head)} rows, the model's {model.vocab_size}; give the"
                " parent that the model came from"
            )
        return _Taught(features, head, (asked.flatten().cumsum(0) - 1).view(asked.shape), 1 / len(views))

    def with_own_terms(
        self, model: Denoiser, given: Supervision, inputs: tuple[Tensor, Tensor], made: LossReport
    ) -> LossReport:
        """The report with the KL term; part `kl`: its sum over the masked positions that have a teacher."""
        known: _Taught | None = given.prior
        if known is None:
            return made
        taught = given.view.m2t & given.select & (given.batch.positions() > 0)
        weights = self._kl_weights(given.view, given.batch, known.share)[taught]
        features, head = inputs
        total, divergence = weighted_kl(
            features[taught[given.select]], head, self._teacher_at(taught, known, model.mask_id), weights
        )
        parts, counts = {"kl": divergence.double().sum()}, {"kl": taught.sum().double()}
        return LossReport(
            made.total + total.float(), made.normaliser, {**made.parts, **parts}, {**made.counts, **counts}
        )

    def _teacher_at(self, taught: Tensor, known: _Taught, mask_id: int) -> Teacher:
        place = known.place.repeat(len(taught) // len(known.place), 1)[taught]
        exclude = mask_id if self.exclude_mask else None
        return Teacher(
            known.features[place], known.head, min(self.top_k, len(known.head) - 1), exclude, 0,
            self.direction == "reverse", self.temperature,
        )  # fmt: skip
