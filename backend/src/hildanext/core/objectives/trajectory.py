# The states of the model's own decoding as training states: each block masked as it was before a forward of its own.
# Entry points: Trajectory.
# Orders come from `hildanext trajectories`, found by the hash of the row; without a file the order is left to right. A
# block sees nothing of later blocks, so that all blocks of a row are trained at once, each at a cut of its own order.
"""Objective `trajectory`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from hildanext.config.noise import NoiseConfig
from hildanext.core.head import HeadOptions
from hildanext.core.linear_cross_entropy import weighted_cross_entropy
from hildanext.core.noise import Corruption, maskable, unit_sizes, units
from hildanext.core.objectives.mask_and_edit import MaskAndEdit, Supervision
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import About, Batch, Denoiser, Kept, LossReport, Pass
from hildanext.errors import ConfigError

RATIO = NoiseConfig(low=0.0, high=0.8, replace=0.0)


class Trajectory(MaskAndEdit, noise=RATIO, weighting="uniform", normaliser="masked", t2t_weight=0.0, keep_weight=0.0):
    """Cross-entropy at the positions that were still masked at a cut of the block's own order of decoding, + lambda
    times the entropy of right predictions. Source: d3LLM arXiv:2601.07568, pseudo-trajectories, curriculum of the mask
    ratio, certainty term; all blocks of a row at once is ours."""

    orders: str = Field(
        "", description="folder that `hildanext trajectories` wrote; empty: every order is left to right"
    )
    unrecorded: Literal["refuse", "random"] = Field(
        "refuse", description="a row without a recorded order, as replayed rows are: an error, or a random order"
    )
    rise_to: float = Field(0.8, ge=0, le=1, description="noise.low at the end of the run, which it rises to linearly")
    certainty: float = Field(0.0, ge=0, description="factor of the entropy at rightly predicted masked positions")
    certainty_temperature: float = Field(0.5, gt=0, description="temperature of that entropy")

    _recorded: Kept | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        noise = self.noise
        if noise.type != "mask" or noise.unit != "block" or noise.group > 1 or noise.replace > 0:
            raise ValueError("noise: a cut of a block's order needs type=mask, unit=block, group=1, replace=0")
        if self.rise_to > noise.high:
            raise ValueError(f"rise_to {self.rise_to} is above noise.high {noise.high}; give rise_to <= high")
        return self

    def prepare(self, about: About) -> Self:
        """With the orders at hand. DataError where they are of another tokenizer."""
        made = super().prepare(about)
        if self.orders:
            if about.kept is None:
                raise ConfigError("objective.orders: recorded orders cannot be read here")
            made._recorded = about.kept("trajectories", self.orders, "")
        return made

    def at(self, done: float) -> Self:
        """With the attention and the mask ratios of this part of the run."""
        low = self.noise.low + max(0.0, self.rise_to - self.noise.low) * done
        return super().at(done).model_copy(update={"noise": self.noise.model_copy(update={"low": low})})

    def parts_cost(self) -> tuple[Pass, ...]:
        """Those of mask_and_edit, the head read twice more for the certainty term."""
        made = super().parts_cost()
        return tuple(one if one.causal or not self.certainty else replace(one, reads=one.reads + 2) for one in made)

    def views(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """The state of each block before one of its forwards; with noise.complementary also its complement."""
        can, unit = maskable(batch, model.mask_id), units("block", batch, block, model.block_grid)
        uniforms = row_uniforms(batch, rng, 2)
        size = unit_sizes(unit, can).gather(1, unit)
        low, high = self.noise.low, self.noise.high
        count = ((low + (high - low) * uniforms[0].gather(1, unit)) * size).ceil().long().clamp(min=1)
        masked = can & (later(self.order(model, batch, uniforms[1]), unit, can) < count)
        views = [self._view(model, batch, can, masked, unit)]
        if self.noise.complementary:
            views.append(self._view(model, batch, can, can & ~masked, unit))
        return tuple(views)

    def _view(self, model: Denoiser, batch: Batch, can: Tensor, masked: Tensor, unit: Tensor) -> Corruption:
        count, size = (unit_sizes(unit, which).gather(1, unit).double() for which in (masked, can))
        tokens, none = batch.tokens.masked_fill(masked, model.mask_id), torch.zeros_like(masked)
        return Corruption(tokens, masked, none, can, count / size.clamp(min=1), size / count.clamp(min=1))

    def order(self, model: Denoiser, batch: Batch, uniform: Tensor) -> Tensor:
        """[B, L] float64: what is filled earlier has the lower number, within every block. DataError for a row that has
        no recorded order and must have one."""
        index = torch.arange(uniform.shape[1], device=uniform.device, dtype=torch.float64).expand(uniform.shape)
        if self._recorded is None:
            return index
        known = self._recorded.known(batch) if self.unrecorded == "random" else torch.ones(len(index), dtype=torch.bool)
        rows = known.nonzero()[:, 0].tolist()
        some = Batch(
            batch.tokens[rows], batch.learn[rows], batch.docs[rows], tuple(batch.ids[row] for row in rows if batch.ids)
        )
        steps = self._recorded.rows(some).double()
        recorded = units("block", batch, int(self._recorded.facts["block"]), model.block_grid)[rows]
        made = uniform.clone()
        # blocks larger than the recorded ones take these one after the other
        made[rows] = recorded * float(steps.max() + 2 if len(rows) else 1) + steps
        return made

    def with_own_terms(
        self, model: Denoiser, given: Supervision, inputs: tuple[Tensor, Tensor], made: LossReport
    ) -> LossReport:
        """The report with the certainty term."""
        if not self.certainty:
            return made
        features, head = inputs[0] / self.certainty_temperature, inputs[1]
        masked, targets = given.view.m2t[given.select], given.batch.tokens[given.select]
        options = HeadOptions(model.mask_id if self.exclude_mask else None)
        only = self.model_copy(update={"confidence": self.certainty})
        sure = only._entropy_weights((features, head, targets), options, masked, made.normaliser)
        total, scores = weighted_cross_entropy(
            features, head, targets, torch.stack([torch.zeros_like(sure), sure]), options
        )
        parts = {"certainty": ((sure > 0) * scores.entropy.double()).sum()}
        counts = {"certainty": (sure > 0).sum().double()}
        return LossReport(
            made.total + total.float(), made.normaliser, {**made.parts, **parts}, {**made.counts, **counts}
        )


def later(order: Tensor, unit: Tensor, can: Tensor) -> Tensor:
    """[B, L] int64: how many of the unit's positions in `can` come later than each. order [B, L]: numbers that compare
    within a unit. The positions with fewer than n later ones are those open before one of the steps: n of them, or more
    where a step fills several. Source: d3LLM arXiv:2601.07568, the cut of a trajectory."""
    span = float(order.max() - order.min()) + 1.0
    value = torch.where(can, unit * span + (order - order.min()), torch.inf)
    upto = torch.searchsorted(value.sort(dim=1).values, value, right=True)
    sizes = unit_sizes(unit, can)
    return sizes.gather(1, unit) - (upto - (sizes.cumsum(dim=1) - sizes).gather(1, unit))
