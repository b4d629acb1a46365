# T2T on the model's own errors alone: what it would fill in at a high mask ratio is what it must keep or repair.
# Entry points: OwnErrors.
# Every row is used twice: masked, and with the model's drafts for the masks. Unlike multi_turn it knows no random
# replacement and no partial filling, and its drafts come from a forward of their own, in evaluation mode.
"""Objective `own_errors`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from pydantic import model_validator
from torch import Tensor

from hildanext.config.noise import NoiseConfig
from hildanext.core.head import HeadOptions
from hildanext.core.linear_cross_entropy import weighted_cross_entropy
from hildanext.core.noise import Corruption, mean_rate
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch, Denoiser, Pass

RATIO = NoiseConfig(low=0.75, high=0.75, draw="count", replace=0.0)


class OwnErrors(MaskAndEdit, noise=RATIO, weighting="uniform"):
    """Mean of two losses at the noised positions: of the masked text, and of the text with the likeliest token at every
    mask, where a right one is to be kept (KEEP) and a wrong one edited (T2T). Source: DMax arXiv:2604.08302, on-policy
    uniform training; replaced tokens, where noise.replace draws any, are supervised in both."""

    @model_validator(mode="before")
    @classmethod
    def _at_the_ratio(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not isinstance(given.get("noise"), Mapping):
            return given
        return {**given, "noise": {**RATIO.model_dump(exclude_defaults=True), **given["noise"]}}

    @model_validator(mode="after")
    def _one_view(self) -> Self:
        if self.noise.complementary or self.noise.type != "mask":
            raise ValueError("noise: the second view is the model's draft; give complementary=false and type=mask")
        return self

    def parts_cost(self) -> tuple[Pass, ...]:
        """Those of the masked and the drafted text, the draft's own forward before the first."""
        masked, drafted, *rest = super().parts_cost()
        return replace(masked, reads=masked.reads + 1, drafts=1), drafted, *rest

    def _scored_shares(self) -> list[float]:
        masked = mean_rate(self.noise)
        replaced = (1 - masked) * self.noise.replace * (self.t2t_weight > 0)
        drafted = masked * (max(self.t2t_weight, self.keep_weight) > 0)
        return [(self.m2t_weight > 0) * masked + replaced, drafted + replaced]

    def views(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """The masked view and the drafted one; maskable in both: what was masked or replaced."""
        (drawn,) = super().views(model, batch, block, rng)
        masked = replace(drawn, maskable=drawn.m2t | drawn.t2t)
        tokens = drawn.tokens.masked_scatter(drawn.m2t, self._draft(model, batch, block, drawn))
        wrong = masked.maskable & (tokens != batch.tokens)
        return masked, replace(masked, tokens=tokens, m2t=torch.zeros_like(drawn.m2t), t2t=wrong)

    @torch.no_grad()
    def _draft(self, model: Denoiser, batch: Batch, block: int, view: Corruption) -> Tensor:
        with evaluating(model):
            features = model.noisy_features(view.tokens, batch, block, view.m2t)
        targets, options = batch.tokens[view.m2t], HeadOptions(model.mask_id if self.exclude_mask else None)
        nothing = torch.zeros(len(targets), device=features.device)
        return weighted_cross_entropy(features, model.head(), targets, nothing, options)[1].best

    def weights(self, view: Corruption, batch: Batch, share: float = 1.0) -> Tensor:
        """Those of mask_and_edit, all divided by the two views, which both count every noised position."""
        return super().weights(view, batch) * share


@runtime_checkable
class _Moded(Protocol):
    training: bool

    def train(self, mode: bool = True) -> Any: ...


@contextmanager
def evaluating(model: Denoiser) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards in the mode it was in."""
    # a denoiser without parameters has no mode
    moded = model if isinstance(model, _Moded) and model.training else None
    if moded is not None:
        moded.train(False)
    try:
        yield
    finally:
        if moded is not None:
            moded.train()
