# What objectives of reinforcement learning share: advantages, KL forms, and one backward per view whatever the loss.
# Entry points: PolicyObjective, SequenceObjective (of a row's likelihood), StepObjective (of each token), Known.
# A loss of the mean over views needs all of them at once; a first pass without a graph gives its slope with respect to
# each row's likelihood, and then every view has a backward of its own (BGPO arXiv:2510.11683): memory does not grow
# with the views, and the gradient is that of the whole graph. Letters: B rows, P prompts, G answers of a prompt.
"""Base classes of the policy objectives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.noise import Corruption, units
from hildanext.core.policy_views import Played, by_row, elbo_views, log_probabilities, support_ids
from hildanext.core.types import About, Denoiser, LossReport
from hildanext.registry import Plugin

STEEPEST = 10.0
KlForm = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class Known:
    """What does not move while a batch is learned. views; old, reference: log-probabilities [n] at each view's scored
    positions under the policy that answered (empty where it is not read) and under the reference (None likewise);
    support: ids [n, k] that could be drawn there, None: all; fresh: the model is still the one that answered; moved
    takes what is found while it is learned: |log-ratio| of each kept row per token, or of each token."""

    views: tuple[Corruption, ...]
    old: tuple[Tensor, ...]
    reference: tuple[Tensor, ...] | None = None
    support: tuple[Tensor, ...] | None = None
    fresh: bool = False
    moved: list[Tensor] = field(default_factory=list)


def advantages(rewards: Tensor, form: str) -> Tensor:
    """rewards [P, G] -> [P, G], zero where a group is flat. leave_one_out: against the mean of the others; group_mean:
    of all; z: that over the group's standard deviation. Source: docs/rl.md."""
    count, centred = rewards.shape[1], rewards - rewards.mean(dim=1, keepdim=True)
    if form == "leave_one_out":
        return centred * (count / max(1, count - 1))
    if form == "z":
        spread = rewards.std(dim=1, keepdim=True, correction=0)
        return torch.where(spread > 0, centred / spread.clamp(min=1e-9), 0.0)
    return centred


def kl(log_ratio: Tensor, form: KlForm) -> Tensor:
    """k1: d, k2: d^2 / 2, k3: exp(-d) - 1 + d of the log-ratio d = log p(model) - log p(reference), elementwise.
    Source: the estimators compared in ESPO arXiv:2512.03759."""
    if form == "k1":
        return log_ratio
    return log_ratio.square() / 2 if form == "k2" else (-log_ratio).exp() - 1 + log_ratio


def clipped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """1.0 where the clip takes the gradient away, else 0.0, elementwise. Source: docs/rl.md."""
    return (((advantage > 0) & (ratio > 1 + clip)) | ((advantage < 0) & (ratio < 1 - clip))).double()


class PolicyObjective(Plugin):
    """A loss on answers and their advantages; fields are settings. pairs: rows come as (chosen, rejected); rounds: it
    scores the rounds an answer was decoded in, so these must be known and nothing may be rewritten; reads_old: it
    compares with the policy that answered; rehearses: it makes each forward without a gradient first."""

    pairs: ClassVar[bool] = False
    rounds: ClassVar[bool] = False
    reads_old: ClassVar[bool] = True
    rehearses: ClassVar[bool] = False

    advantage: Literal["leave_one_out", "group_mean", "z"] = Field(
        "leave_one_out",
        description="what a reward is compared with: the others' mean, the group's, or that in deviations",
    )
    kl_weight: float = Field(0.001, ge=0, description="factor of the KL to the reference; 0: none, and no reference")
    kl_form: KlForm = Field("k2", description="k1: d, k2: d^2/2, k3: exp(-d)-1+d of the log-ratio d")

    @property
    def compares(self) -> bool:
        """Whether it reads the reference."""
        return self.kl_weight > 0

    def prepare(self, about: About) -> Self:
        """The objective that is trained with."""
        return self

    def advantages(self, rewards: Tensor) -> Tensor:
        """Advantages [P, G] of rewards [P, G]."""
        return advantages(rewards, self.advantage)

    def views(self, model: Denoiser, played: Played, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """The views of a batch, the same for every model that is compared."""
        raise ValueError(f"objective {type(self).__name__} defines no views")

    def support(self, model: Denoiser, played: Played, block: int, view: Corruption) -> Tensor | None:
        """Ids [n, k] that alone have a probability at a view's scored positions; None: all."""
        return None

    def score(
        self, model: Denoiser, played: Played, block: int, view: Corruption, support: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities [n] at a view's scored positions."""
        return log_probabilities(model, played.batch, block, view, support=support)

    def losses(self, model: Denoiser, played: Played, block: int, known: Known) -> Iterator[LossReport]:
        """One report per view; their sum is the batch's, normalised by the rows kept."""
        raise ValueError(f"objective {type(self).__name__} defines no losses")


class SequenceObjective(PolicyObjective):
    """A loss of each row's likelihood bound."""

    rehearses: ClassVar[bool] = True

    draws: int = Field(1, ge=1, description="masks drawn per answer and update, a count; coupled ones are two forwards")
    coupled: bool = Field(True, description="score the complement of every mask too")
    rates: Literal["sequence", "block"] = Field(
        "block", description="one mask count per answer, or one per block: the same mean, less spread"
    )

    def views(self, model: Denoiser, played: Played, block: int, rng: torch.Generator) -> tuple[Corruption, ...]:
        """Views of the block bound."""
        unit = units(self.rates, played.batch, block, model.block_grid)
        return elbo_views(model, played.batch, unit, rng, self.draws, self.coupled)

    def row_losses(
        self, now: Tensor, old: Tensor, reference: Tensor | None, played: Played
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss [B], parts [B] by name) of the likelihoods [B] in nats; differentiable in `now`."""
        raise ValueError(f"objective {type(self).__name__} defines no row_losses")

    def losses(self, model: Denoiser, played: Played, block: int, known: Known) -> Iterator[LossReport]:
        """First the likelihoods without a graph and the slope of the loss in each, then a backward per view."""
        old = _mean(known.views, known.old) if self.reads_old else None
        now = old if known.fresh and old is not None else self._now(model, played, block, known)
        old = now if old is None else old
        reference = None if known.reference is None else _mean(known.views, known.reference)
        leaf, kept, count = now.detach().requires_grad_(), played.kept.to(now.dtype), len(known.views)
        rows, parts = self.row_losses(leaf, old, reference, played)
        tokens = played.batch.learn.sum(dim=1).clamp(min=1)
        known.moved.append(((now - old).abs() / tokens)[played.kept].detach())
        slope = torch.autograd.grad((rows * kept).sum(), leaf)[0] / count
        for index, view in enumerate(known.views):
            own = by_row(view, self.score(model, played, block, view))
            total = (slope * (own - own.detach())).sum() + (rows * kept).detach().sum() / count
            yield _report(total, kept, count, parts if index == 0 else {})

    @torch.no_grad()
    def _now(self, model: Denoiser, played: Played, block: int, known: Known) -> Tensor:
        return _mean(known.views, tuple(self.score(model, played, block, view) for view in known.views))


class StepObjective(PolicyObjective):
    """A clipped loss of every token decoded, in the state it was decoded in."""

    rounds: ClassVar[bool] = True

    clip: float = Field(0.2, ge=0, description="epsilon: a token's ratio counts within [1 - epsilon, 1 + epsilon]")
    kl_weight: float = Field(0.0, ge=0, description="factor of the KL; 0: none")
    kl_form: KlForm = Field("k3", description="k1: d, k2: d^2/2, k3: exp(-d)-1+d of a token's log-ratio d")

    def support(self, model: Denoiser, played: Played, block: int, view: Corruption) -> Tensor | None:
        """What could be drawn, where sampling cuts."""
        return support_ids(model, played, block, view) if played.cut else None

    def score(
        self, model: Denoiser, played: Played, block: int, view: Corruption, support: Tensor | None = None
    ) -> Tensor:
        """At the temperature the tokens were drawn with, among those that could be."""
        return log_probabilities(model, played.batch, block, view, played.temperature, support)

    def penalty(self, now: Tensor, old: Tensor, reference: Tensor) -> Tensor:
        """[n] the KL term of each token."""
        return kl(now - reference, self.kl_form)

    def scale(self, played: Played) -> Tensor:
        """[B] what a row's sum over its tokens is divided by."""
        return torch.ones_like(played.advantage)

    def losses(self, model: Denoiser, played: Played, block: int, known: Known) -> Iterator[LossReport]:
        """A backward per view, each of its own tokens alone."""
        count, kept = len(known.views), played.kept.double()
        for index, view in enumerate(known.views):
            rows = (view.m2t | view.t2t).nonzero()[:, 0]
            support = None if known.support is None else known.support[index]
            now, old = self.score(model, played, block, view, support), known.old[index]
            known.moved.append((now - old).abs().detach()[played.kept[rows]])
            advantage = played.advantage[rows].to(now.dtype)
            ratio = (now - old).clamp(-STEEPEST, STEEPEST).exp()
            loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
            parts = {"clipped": clipped(ratio, advantage, self.clip)}
            if self.kl_weight:
                against = known.reference[index] if known.reference is not None else old
                gap = self.penalty(now, old, against)
                loss, parts = loss + self.kl_weight * gap, parts | {"kl": gap}
            by = by_row(view, loss) / self.scale(played).to(loss.dtype)
            flat = {name: (value.detach() * kept[rows], kept[rows]) for name, value in parts.items()}
            yield _report((by * kept.to(by.dtype)).sum() / count, kept, count, {}, flat)


def _mean(views: tuple[Corruption, ...], values: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([by_row(view, one) for view, one in zip(views, values, strict=True)]).mean(dim=0)


def _report(
    total: Tensor,
    kept: Tensor,
    count: int,
    by_row_parts: dict[str, Tensor],
    by_token: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> LossReport:
    parts = {name: (value.detach() * kept).double().sum() for name, value in by_row_parts.items()}
    counts = {name: kept.double().sum() for name in by_row_parts}
    for name, (value, weight) in (by_token or {}).items():
        parts[name], counts[name] = value.double().sum(), weight.double().sum()
    return LossReport(total.float(), kept.sum().float() / count, parts, counts)
