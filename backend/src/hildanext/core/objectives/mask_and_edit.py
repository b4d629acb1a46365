# LLaDA2.1's two streams in one forward: fill masked positions (M2T), restore replaced tokens (T2T), keep right ones.
# Entry points: MaskAndEdit (the default objective of convert-wsd and sft), Supervision.
# The other diffusion objectives are this class with other defaults, `class Soft(MaskAndEdit, smoothing=0.1)`, or with a
# `loss` of their own. noise.replace=0 and keep_weight=0 leave the plain block-diffusion loss; only the M2T term with
# ELBO weights bounds a likelihood. The T2T and KEEP terms' default weights are ours (the reports publish none).
"""Objective `mask_and_edit`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from hildanext.config.noise import NoiseConfig
from hildanext.core.annealing import annealed
from hildanext.core.batches import repeated
from hildanext.core.groups import grouped
from hildanext.core.head import HeadOptions, sample_tokens
from hildanext.core.linear_cross_entropy import TokenScores, weighted_cross_entropy
from hildanext.core.loss_report import autoregressive_report, joined, merged, sums_of
from hildanext.core.noise import Corruption, cart_weights, corrupt, maskable, mean_rate, unit_sizes, units
from hildanext.core.objective import BaseObjective
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import About, Batch, Denoiser, LossReport, Pass


@dataclass(frozen=True)
class Supervision:
    """One forward to be scored: a view, the batch its clean half comes from, and the weight [B, L] of each position's
    nll in the numerator. `select` [B, L] bool: the positions that are scored. `uniform` [B, L] in [0, 1): also draw a
    token at each of them, from the model's distribution. `prior`: what the objective made of all views. `clean`:
    the rows that view has several views of; None: batch."""

    view: Corruption
    batch: Batch
    weight: Tensor
    select: Tensor
    uniform: Tensor | None = None
    prior: Any = None
    clean: Batch | None = None


class MaskAndEdit(BaseObjective):
    """[sum_M2T w(t) nll + lambda_e sum_T2T nll + lambda_k sum_KEEP nll] / normaliser, in one forward over [x_t ; x_0].
    A subclass `class Name(MaskAndEdit, field=default, ...)` is a preset. Source: LLaDA2.1 arXiv:2602.08676 sec. 3.1,
    M2T term: LLaDA2.0 arXiv:2512.15745 eq. 5 (sign as in its text); shares, factors and the KEEP term are ours."""

    renamed: ClassVar[dict[str, str]] = {"masked_weight": "m2t_weight", "edit_weight": "t2t_weight"}

    noise: NoiseConfig = Field(NoiseConfig(), description="mask rates, mask sets and replaced tokens")
    weighting: Literal["elbo", "uniform", "cart"] = Field(
        "elbo",
        description="weight of a masked position: that of the ELBO (1/p for linear time), 1, or by the visible tokens"
        " near it (CART; the part elbo then has these weights)",
    )
    cart: float = Field(0.3, gt=0, lt=1, description="decay of CART with the distance, a probability")
    path: float = Field(0.0, ge=0, description="factor of cross-entropy weighed by the masked token's probability")
    normaliser: Literal["token", "masked", "document", "sequence", "position"] = Field(
        "token",
        description="denominator: maskable tokens; masked tokens; all B x L positions; or the documents or rows, "
        "each sum then over its own maskable tokens (answer length)",
    )
    m2t_weight: float = Field(1.0, ge=0, description="factor of the M2T term")
    t2t_weight: float = Field(1.0, ge=0, description="factor of the T2T term (lambda_e)")
    keep_weight: float = Field(1.0, ge=0, description="factor of the KEEP term (lambda_k)")
    keep_share: float = Field(1.0, gt=0, le=1, description="share of the KEEP positions scored, which weigh 1 / share")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing, the share spread over the vocabulary")
    confidence: float = Field(0.0, ge=0, description="factor of the entropy at correctly predicted masked positions")
    confidence_over: Literal["correct", "normaliser"] = Field(
        "correct",
        description="the entropy term's denominator: correct positions of the micro-batch (LLaDA2.0 eq. 6), or that of "
        "the loss, which makes it independent of how a batch is split",
    )
    views_beside: bool = Field(False, description="both views of noise.complementary share one clean half and forward")
    autoregressive: float = Field(
        0.0, ge=0, description="factor of the next-token loss added as a side term, per token of the loss"
    )
    exclude_mask: bool = Field(True, description="give [MASK] probability 0 in every prediction")
    anneal: float = Field(0.0, ge=0, le=1, description="share of the run in which attention opens from causal; 0: none")

    _opening: float = PrivateAttr(1.0)

    def __init_subclass__(cls, **defaults: Any) -> None:
        super().__init_subclass__()
        if "loss" in cls.__dict__ and "losses" not in cls.__dict__:
            cls.losses = BaseObjective.losses  # type: ignore[method-assign]
            cls.passes = property(_joint)  # type: ignore[assignment, method-assign]

    @classmethod
    def __pydantic_init_subclass__(cls, **defaults: Any) -> None:
        unknown = sorted(defaults.keys() - cls.model_fields.keys())
        if unknown:
            raise ValueError(f"objective {cls.__name__}: no field {', '.join(unknown)}")
        for name, value in defaults.items():
            cls.model_fields[name].default, cls.model_fields[name].validate_default = value, True
        cls.model_rebuild(force=True)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """As many as `parted` gives reports."""
        return self.parts_cost()

    def parts_cost(self) -> tuple[Pass, ...]:
        """One for each view, one for the side term; both views in one where their entropy terms share a count."""
        shares = self._scored_shares()
        reads = (self.confidence > 0) + (self.path > 0)
        if self._views_together:
            made = [Pass(sum(shares) / len(shares), len(shares), reads=reads, beside=True)]
        else:
            made = [Pass(share, reads=reads) for share in shares]
        return (*made, Pass(causal=True)) if self.autoregressive else tuple(made)

    def _scored_shares(self) -> list[float]:
        masked = mean_rate(self.noise)
        rates = [masked, 1 - masked] if self.noise.complementary else [masked]
        if self.noise.type == "random_replace":
            return [(self.t2t_weight > 0) * rate + self._kept(1 - rate) for rate in rates]
        replaced = self.noise.replace
        return [
            (self.m2t_weight > 0) * rate
            + (self.t2t_weight > 0) * (1 - rate) * replaced
            + self._kept((1 - rate) * (1 - replaced))
            for rate in rates
        ]

    def _kept(self, share: float) -> float:
        return self.keep_share * share if self.keep_weight > 0 else 0.0

    @property
    def _views_together(self) -> bool:
        shares_count = self.confidence > 0 and self.confidence_over == "correct"
        return self.noise.complementary and (self.views_beside or shares_count)

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        """The report of one micro-batch; see core.types.Objective."""
        return merged(list(self.parted(model, batch, block, rng)))

    def loss_of(self, model: Denoiser, batch: Batch, views: tuple[Corruption, ...], block: int) -> LossReport:
        """The report of given views, whatever made them."""
        return merged(list(self.parted_of(model, batch, views, block, [])))

    def losses(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> Iterator[LossReport]:
        """The reports of `parted`; the whole loss in one where a subclass has a `loss` of its own."""
        yield from self.parted(model, batch, block, rng)

    def parted(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> Iterator[LossReport]:
        """A report for each of `passes`; the first carries the normaliser of all, the others 0."""
        batch = grouped(self.noise, model, annealed(batch, self._opening, rng), block, rng)
        views = self.views(model, batch, block, rng)
        yield from self.parted_of(model, batch, views, block, self.thinning(batch, rng, len(views)))

    def parted_of(
        self, model: Denoiser, batch: Batch, views: tuple[Corruption, ...], block: int, uniform: list[Tensor]
    ) -> Iterator[LossReport]:
        """`parted` of given views; uniform: as of `thinning`."""
        normaliser, prior = self.denominator(views, batch), self.prior(model, batch, views)
        whole, groups, share, clean = batch, list(views), 1 / len(views), None
        if self._views_together:
            whole, groups, clean = repeated(batch, len(views)), [joined(views)], batch
            uniform = [torch.cat(uniform)] if uniform else []
        for index, view in enumerate(groups):
            weight = self.thinned(self.weights(view, whole, share), view, uniform[index : index + 1])
            given = Supervision(view, whole, weight, self.chosen(view, weight), None, prior, clean)
            made = self.scored(model, given, block, normaliser)
            yield replace(made, normaliser=normaliser if index == 0 else torch.zeros_like(normaliser))
        yield from self.side_term(model, batch, normaliser)

    def prior(self, model: Denoiser, batch: Batch, views: tuple[Corruption, ...]) -> Any:
        """What `with_own_terms` needs of all views at once, before the first is scored; here nothing."""
        return None

    def chosen(self, view: Corruption, weight: Tensor) -> Tensor:
        """[B, L] bool: the positions whose prediction is scored; here those with a weight."""
        return weight > 0

    def views(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """The corrupted views of a batch; one, or the two of a complementary pair."""
        made = corrupt(self.noise, model, batch, block, rng)
        if self.weighting != "cart":
            return made
        return tuple(replace(view, elbo=cart_weights(view.m2t, batch, block, self.cart, model)) for view in made)

    def prepare(self, about: About) -> Self:
        """The same objective drawing random tokens of the tokenizer's only, and never a special id."""
        barred = tuple(sorted({*self.noise.forbidden, *about.special}))
        noise = self.noise.model_copy(update={"vocabulary": about.vocabulary, "forbidden": barred})
        return self.model_copy(update={"noise": noise})

    def at(self, done: float) -> Self:
        """With the attention of this part of the run."""
        made = self.model_copy()
        made._opening = min(1.0, done / self.anneal) if self.anneal else 1.0
        return made

    def weights(self, view: Corruption, batch: Batch, share: float = 1.0) -> Tensor:
        """[B, L] float32: each position's weight in the numerator. share: one over the number of views, for the terms
        that every view estimates by itself (all but uniformly weighted masks, which the views divide among them)."""
        masked = view.elbo * share if self.weighting != "uniform" else torch.ones_like(view.elbo)
        weight = torch.where(view.m2t, masked * self.m2t_weight, 0.0)
        weight = torch.where(view.t2t, share * self.t2t_weight, weight)
        weight = torch.where(view.keep, share * self.keep_weight, weight)
        return (weight * self.row_factor(view.maskable, batch)).float()

    def thinning(self, batch: Batch, rng: torch.Generator, count: int) -> list[Tensor]:
        """`count` uniforms [B, L] in [0, 1) that choose the KEEP positions; none, and nothing drawn, where all stay."""
        return [] if self.keep_share == 1 or self.keep_weight == 0 else list(row_uniforms(batch, rng, count))

    def thinned(self, weight: Tensor, view: Corruption, uniform: list[Tensor]) -> Tensor:
        """Weights [B, L] in which KEEP positions stay with probability keep_share, then divided by it; the others as
        they were. Source: docs/papers.md, thinned KEEP."""
        if not uniform:
            return weight
        chosen = torch.where(uniform[0] < self.keep_share, weight / self.keep_share, 0.0)
        return torch.where(view.keep, chosen, weight)

    def row_factor(self, learned: Tensor, batch: Batch) -> Tensor | float:
        """What a position's weight is multiplied by where documents or rows are counted: one over the positions of its
        own in learned [B, L] bool. Source: docs/papers.md, one division per step."""
        if self.normaliser not in ("document", "sequence"):
            return 1.0
        unit = units(self.normaliser, batch, 0)
        return 1.0 / unit_sizes(unit, learned).gather(1, unit).clamp(min=1)

    def denominator(self, views: tuple[Corruption, ...], batch: Batch) -> Tensor:
        """The normaliser of this micro-batch, scalar float32: a count, 0 where there is nothing to learn."""
        first = views[0]
        if self.normaliser == "masked":
            return torch.stack([view.m2t.sum() for view in views]).sum().float()
        if self.normaliser == "position":
            return torch.tensor(float(batch.tokens.numel()), device=batch.tokens.device)
        if self.normaliser == "token":
            return first.maskable.sum().float()
        return (unit_sizes(units(self.normaliser, batch, 0), first.maskable) > 0).sum().float()

    def scored(self, model: Denoiser, given: Supervision, block: int, normaliser: Tensor) -> LossReport:
        """Forward, loss and report of one supervision."""
        return self.scored_with_tokens(model, given, block, normaliser)[0]

    def scored_with_tokens(
        self, model: Denoiser, given: Supervision, block: int, normaliser: Tensor
    ) -> tuple[LossReport, TokenScores]:
        """As `scored`, with the scores of the positions at given.select, in row-major order."""
        select, view = given.select, given.view
        features = model.noisy_features(view.tokens, given.clean or given.batch, block, select)
        head, targets, weight = model.head(), given.batch.tokens[select], given.weight[select]
        options = HeadOptions(model.mask_id if self.exclude_mask else None, self.smoothing)
        if self.path > 0:
            with torch.no_grad():
                _, known = weighted_cross_entropy(features, head, targets, torch.zeros_like(weight), options)
            weight = weight * (1 + self.path * view.m2t[select] * (-known.nll).exp()).to(weight)
        if self.confidence > 0:
            entropy = self._entropy_weights((features, head, targets), options, view.m2t[select], normaliser)
            weight = torch.stack([weight, entropy])
        total, scores = weighted_cross_entropy(features, head, targets, weight, options)
        parts, counts = sums_of(view, select, scores, block)
        if given.uniform is not None:
            scores = replace(scores, drawn=sample_tokens(features, head, given.uniform[select], options))
        made = LossReport(total.float(), normaliser, parts, counts)
        return self.with_own_terms(model, given, (features, head), made), scores

    def with_own_terms(
        self, model: Denoiser, given: Supervision, inputs: tuple[Tensor, Tensor], made: LossReport
    ) -> LossReport:
        """The report with what an objective adds at given.select, whose features [n, D] and output matrix are `inputs`;
        here as it is."""
        return made

    def _entropy_weights(
        self, inputs: tuple[Tensor, Tensor, Tensor], options: HeadOptions, masked: Tensor, normaliser: Tensor
    ) -> Tensor:
        features, head, targets = inputs
        with torch.no_grad():
            _, scores = weighted_cross_entropy(features, head, targets, torch.zeros_like(targets).float(), options)
        chosen = (scores.correct & masked).float()
        if self.confidence_over == "normaliser":
            return self.confidence * chosen
        return self.confidence * chosen * normaliser / chosen.sum().clamp(min=1)

    def side_term(self, model: Denoiser, batch: Batch, normaliser: Tensor) -> Iterator[LossReport]:
        """The next-token loss at the rate `autoregressive`, each token weighing what a token of the loss beside it
        does in the mean, so that it shares that normaliser (its own is 0); none at rate 0. Source: docs/papers.md, one
        division per step."""
        if self.autoregressive == 0:
            return
        masked = mean_rate(self.noise)
        drawn = masked + (1 - masked if self.noise.complementary else 0)
        scale = self.autoregressive * (drawn if self.normaliser == "masked" else 1.0)
        factor = self.row_factor(maskable(batch, model.mask_id), batch)
        side = autoregressive_report(model, batch, weight=scale * factor * torch.ones_like(batch.tokens).float())
        yield replace(side, normaliser=torch.zeros_like(normaliser))


def _joint(objective: MaskAndEdit) -> tuple[Pass, ...]:
    parts = objective.parts_cost()
    views = sum(one.views for one in parts)
    return (Pass(sum(one.views * one.scored for one in parts) / views, views, reads=max(one.reads for one in parts)),)
