# Training for windows with a teacher that sees more: blocks of a group see those before them noisy, the teacher clean.
# Entry points: Asymmetric.
# mask_and_edit in groups with one more term. The teacher is the model itself, without a gradient, as it decodes one
# block at a time: what it says there a window of several blocks should say too.
"""Objective `asymmetric`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from hildanext.config.noise import NoiseConfig
from hildanext.core.linear_cross_entropy import TokenScores
from hildanext.core.linear_kl import Teacher, weighted_kl
from hildanext.core.noise import Corruption
from hildanext.core.objectives.mask_and_edit import MaskAndEdit, Supervision
from hildanext.core.objectives.own_errors import evaluating
from hildanext.core.types import About, Denoiser, LossReport, Pass
from hildanext.errors import ConfigError

GROUPS = NoiseConfig(group=4)


@dataclass(frozen=True)
class _Taught:
    features: Tensor
    head: Tensor


class Asymmetric(MaskAndEdit, noise=GROUPS, m2t_weight=0.5, weighting="uniform"):
    """mask_and_edit in groups + lambda_d sum_M2T w(t) KL(teacher || model) / normaliser; the teacher has every block
    alone behind the clean text. Source: D2F arXiv:2508.09192, asymmetric distillation; there the teacher sees all noisy
    blocks, to the right as well, which a block-causal model never does. The share of cross-entropy is ours."""

    teacher: str = Field("", description="folder of a diffusion model to learn from; empty: the model as it is")
    kl_weight: float = Field(0.5, ge=0, description="factor of the KL term (lambda_d); 0: mask_and_edit, no teacher")
    top_k: int = Field(
        0, ge=0, description="the KL is over the teacher's k likeliest tokens, renormalised; 0: over all"
    )

    _teacher: Denoiser | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _in_groups(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not isinstance(given.get("noise"), Mapping):
            return given
        return {**given, "noise": {**GROUPS.model_dump(exclude_defaults=True), **given["noise"]}}

    @model_validator(mode="after")
    def _sees_less(self) -> Self:
        if self.noise.group == 1 or self.noise.type != "mask":
            raise ValueError("noise: teacher and model would see the same; give group of 2 or more and type=mask")
        return self

    @property
    def companions(self) -> tuple[str, ...]:
        """The teacher, where it is named."""
        return (self.teacher,) if self.teacher and self.kl_weight else ()

    def prepare(self, about: About) -> Self:
        """With its teacher at hand, where it is another model."""
        made = super().prepare(about)
        made._teacher = about.load(self.teacher) if self.companions else None
        return made

    def parts_cost(self) -> tuple[Pass, ...]:
        """Those of mask_and_edit; before each forward over masks the teacher's own, and its head once more."""
        made = super().parts_cost()
        more = bool(self.kl_weight)
        return tuple(one if one.causal else replace(one, reads=one.reads + more, drafts=int(more)) for one in made)

    def chosen(self, view: Corruption, weight: Tensor) -> Tensor:
        """The masked positions too where cross-entropy on the data has no weight."""
        return super().chosen(view, weight) | view.m2t if self.kl_weight else super().chosen(view, weight)

    def _scored_shares(self) -> list[float]:
        return MaskAndEdit._scored_shares(self.model_copy(update={"m2t_weight": self.m2t_weight + self.kl_weight}))

    def scored_with_tokens(
        self, model: Denoiser, given: Supervision, block: int, normaliser: Tensor
    ) -> tuple[LossReport, TokenScores]:
        """As of mask_and_edit, the teacher having read before."""
        known = self._taught(model, given, block) if self.kl_weight else None
        return super().scored_with_tokens(model, replace(given, prior=known), block, normaliser)

    @torch.no_grad()
    def _taught(self, model: Denoiser, given: Supervision, block: int) -> _Taught:
        source = model if self._teacher is None else self._teacher
        with evaluating(source):
            alone = replace(given.batch, groups=None)
            features = source.noisy_features(given.view.tokens, alone, block, given.view.m2t)
        if len(source.head()) != model.vocab_size:
            raise ConfigError(
                f"objective.teacher: its output matrix has {len(source.head())} rows, the model's {model.vocab_size};"
                " give a child of the same parent"
            )
        return _Taught(features, source.head().detach())

    def with_own_terms(
        self, model: Denoiser, given: Supervision, inputs: tuple[Tensor, Tensor], made: LossReport
    ) -> LossReport:
        """The report with the KL term; part `kl`: its sum over the masked positions."""
        known: _Taught | None = given.prior
        if known is None:
            return made
        only = self.model_copy(update={"m2t_weight": self.kl_weight, "t2t_weight": 0.0, "keep_weight": 0.0})
        masked, (features, head) = given.view.m2t, inputs
        weights = MaskAndEdit.weights(only, given.view, given.batch, 1 / (1 + self.noise.complementary))[masked]
        exclude = model.mask_id if self.exclude_mask else None
        teacher = Teacher(known.features, known.head, min(self.top_k, len(known.head) - 1), exclude)
        total, divergence = weighted_kl(features[masked[given.select]], head, teacher, weights)
        parts, counts = {"kl": divergence.double().sum()}, {"kl": masked.sum().double()}
        return LossReport(
            made.total + total.float(), made.normaliser, {**made.parts, **parts}, {**made.counts, **counts}
        )
