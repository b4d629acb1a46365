# Balance of a mixture of experts beside any objective: the router's auxiliary loss and z-loss, and figures of routing.
# Entry points: Balance. `over` is the objective that does the rest; with both weights 0 only the figures are added.
# The noised and the clean stream route for themselves, and both count; padding and documents in which nothing is
# learned do not. Letters: N = B T positions of a forward, E experts, k of them chosen.
"""Objective `balance`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from hildanext import registry
from hildanext.core.batches import repeated
from hildanext.core.loss_report import merged
from hildanext.core.objective import BaseObjective
from hildanext.core.types import About, Batch, Denoiser, LossReport, Pass
from hildanext.errors import ConfigError

Routed = Mapping[int, tuple[Tensor, Tensor]]


class _Watched:
    """A denoiser that keeps what its routers said in its graded forwards."""

    def __init__(self, model: Denoiser, routing: Any) -> None:
        self.model, self.routing = model, routing
        self.seen: tuple[Routed, Tensor | None, Batch] | None = None

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        with self.routing(self.model) if torch.is_grad_enabled() else nullcontext({}) as found:
            features = self.model.noisy_features(noisy, batch, block, select)
        views = len(noisy) // len(batch.tokens)
        self.seen = (dict(found), noisy, repeated(batch, views)) if found else self.seen
        return features

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        with self.routing(self.model) if torch.is_grad_enabled() else nullcontext({}) as found:
            features = self.model.causal_features(batch, select)
        self.seen = (dict(found), None, batch) if found else self.seen
        return features

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)


class Balance(BaseObjective):
    """`over` + normaliser of `over` x (auxiliary A + z Z), A and Z the mean over layers of E sum_e f_e P_e and of
    logsumexp(logits)^2. Source: Switch Transformers arXiv:2101.03961 eq. 4-6, ST-MoE arXiv:2202.08906 eq. 5; f counts
    all k choices of a position, as in transformers, where layers are not separate."""

    over: dict[str, Any] = Field({"type": "mask_and_edit"}, description="the objective beside it, as a section")
    auxiliary: float = Field(0.0, ge=0, description="factor of the loss that evens out the experts' shares; 0: none")
    z: float = Field(0.0, ge=0, description="factor of the loss that keeps the routers' logits small; 0: none")

    _inner: Any = PrivateAttr(None)
    _routing: Any = PrivateAttr(None)

    @model_validator(mode="after")
    def _built(self) -> Self:
        if self.over.get("type") == "balance":
            raise ValueError("over: balance within balance; name another objective")
        self._inner = registry.build("objectives", self.over, "over")
        return self

    @property
    def companions(self) -> tuple[str, ...]:
        """Those of `over`."""
        made: tuple[str, ...] = self._inner.companions
        return made

    @property
    def compares_with_origin(self) -> bool:
        """What `over` does."""
        return bool(self._inner.compares_with_origin)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Those of `over`."""
        made: tuple[Pass, ...] = self._inner.passes
        return made

    def prepare(self, about: About) -> Self:
        """With the routers at hand. ConfigError where a loss is asked for and there are none."""
        if about.routing is None and (self.auxiliary or self.z):
            raise ConfigError(
                "objective balance: this model has no routers of experts; leave the objective `over` alone"
            )
        made = self.model_copy()
        made._inner, made._routing = self._inner.prepare(about), about.routing
        return made

    def at(self, done: float) -> Self:
        """With `over` of this step."""
        made = self.model_copy()
        made._inner = self._inner.at(done)
        return made

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        """The reports of `losses` as one."""
        return merged(list(self.losses(model, batch, block, rng)))

    def losses(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> Iterator[LossReport]:
        """The reports of `over` with their share of the terms. Parts: router_auxiliary, router_z; load_N: the share of
        layer N's fullest expert times E, 1 where all are even; experts_differ_N: share of positions whose experts are
        not the same set in both streams, and experts_differ_masked, experts_differ_visible over all layers."""
        if self._routing is None:
            yield from self._inner.losses(model, batch, block, rng)
            return
        watched = _Watched(model, self._routing)
        for report in self._inner.losses(watched, batch, block, rng):
            seen, watched.seen = watched.seen, None
            yield report if seen is None else self._balanced(report, *seen, mask_id=model.mask_id)

    def _balanced(
        self, report: LossReport, routed: Routed, noisy: Tensor | None, batch: Batch, mask_id: int
    ) -> LossReport:
        real, length = real_positions(batch), batch.tokens.shape[1]
        streams = len(next(iter(routed.values()))[0]) // real.numel()
        counts = real.repeat(1, streams).flatten()
        losses = torch.stack([router_losses(*one, counts) for one in routed.values()]).mean(dim=0)
        term = self.auxiliary * losses[0] + self.z * losses[1]
        total = report.total + report.normaliser.detach() * term.to(report.total)
        one = torch.ones((), dtype=torch.float64, device=real.device)
        parts = {"router_auxiliary": losses[0].detach().double(), "router_z": losses[1].detach().double()}
        parts |= {f"load_{layer}": _fullest(*found, counts) for layer, found in routed.items()}
        sizes = dict.fromkeys(parts, one)
        if streams == 2 and noisy is not None:
            differ = {layer: _differ(chosen, real.shape, length) for layer, (_, chosen) in routed.items()}
            sets = {f"experts_differ_{layer}": (found & real, real) for layer, found in differ.items()}
            every = torch.stack(list(differ.values()))
            for name, at in (("masked", noisy == mask_id), ("visible", noisy == batch.tokens)):
                chosen = (at & real).expand_as(every)
                sets[f"experts_differ_{name}"] = (every & chosen, chosen)
            parts |= {name: hits.sum().double() for name, (hits, _) in sets.items()}
            sizes |= {name: of.sum().double() for name, (_, of) in sets.items()}
        return replace(report, total=total, parts={**report.parts, **parts}, counts={**report.counts, **sizes})


def real_positions(batch: Batch) -> Tensor:
    """[B, L] bool: positions of documents in which something is learned, prompts too; no padding.
    Source: docs/hybrids.md."""
    same = batch.docs[:, :, None] == batch.docs[:, None, :]
    return (same & batch.learn[:, None, :]).any(dim=2)


def router_losses(logits: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
    """[2]: (auxiliary, z) of one layer over the positions that count. logits [N, E], chosen [N, k] int64, counts [N]
    bool; 0 where none does. Source: arXiv:2101.03961 eq. 4-6, arXiv:2202.08906 eq. 5."""
    logits, chosen = logits[counts].float(), chosen[counts]
    rows, experts = max(1, len(logits)), logits.shape[1]
    share = torch.bincount(chosen.flatten(), minlength=experts).to(logits) / rows
    mean = logits.softmax(dim=-1).sum(dim=0) / rows
    return torch.stack([experts * (share * mean).sum(), logits.logsumexp(dim=-1).square().sum() / rows])


def _fullest(logits: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
    found = torch.bincount(chosen[counts].flatten(), minlength=logits.shape[1]).double()
    return found.max() * len(found) / found.sum().clamp(min=1)


def _differ(chosen: Tensor, shape: torch.Size, length: int) -> Tensor:
    both = chosen.view(shape[0], 2 * length, -1).sort(dim=-1).values
    return (both[:, :length] != both[:, length:]).any(dim=-1)
