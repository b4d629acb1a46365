# Representation alignment: the student's hidden states are pulled towards its frozen AR parent's, beside any objective.
# Entry points: Align. `over` is the objective that does the rest; with weight 0 this is that objective to the bit.
# The parent reads the clean text once, causally: the model itself without adapters, a frozen copy, or states from disk
# (`hildanext anchors`). Without a shift logit i is read at i, and the parent's state that predicts token i is at i - 1:
# `positions` says which states are compared.
"""Objective `align`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from hildanext import registry
from hildanext.core.loss_report import merged
from hildanext.core.masks import block_ids
from hildanext.core.noise import maskable
from hildanext.core.objective import BaseObjective
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.row_streams import base_seed, row_uniforms
from hildanext.core.types import About, Batch, Denoiser, Kept, LossReport, Pass
from hildanext.errors import ConfigError

SALT = 0x616C69676E


@dataclass(frozen=True)
class _Seen:
    noisy: Tensor
    batch: Batch
    block: int
    states: Mapping[int, Tensor]


class _Watched:
    """A denoiser that keeps what layers gave in its graded forwards over noisy text."""

    def __init__(self, model: Denoiser, watch: Any, layers: Collection[int]) -> None:
        self.model, self.watch, self.layers = model, watch, layers
        self.seen: _Seen | None = None

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.model.noisy_features(noisy, batch, block, select)
        with self.watch(self.model, self.layers) as found:
            features = self.model.noisy_features(noisy, batch, block, select)
        self.seen = _Seen(noisy, batch, block, dict(found))
        return features

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)


class Align(BaseObjective):
    """`over` + lambda sum over positions of the mean over layers of 1 - cos(student, parent) / normaliser of `over`.
    Source: Don't Retrain, Align arXiv:2605.06885, its alignment loss; angular margin, sets of positions and the
    subsampling with weights that keep its mean are ours."""

    over: dict[str, Any] = Field({"type": "mask_and_edit"}, description="the objective beside it, as a section")
    weight: float = Field(
        1.0, ge=0, description="factor of the term (lambda), per token of the loss; 0: none, no parent"
    )
    weight_last: float | None = Field(
        None, ge=0, description="factor at the end of the run, linear in between; null: as at the beginning"
    )
    parent: str = Field("", description="folder of the AR parent; empty: the folder the run began from")
    anchors: str = Field(
        "", description="folder of states that `hildanext anchors` wrote; empty: the parent runs beside"
    )
    layers: tuple[int, ...] = Field((), description="layers compared, counted from 1; empty: those in `depth`")
    depth: tuple[float, float] = Field((0.0, 1.0), description="share of the depth, from above the first to the second")
    sample_layers: int = Field(0, ge=0, description="layers drawn of these at each step, a count; 0: all")
    sample_positions: float = Field(1.0, gt=0, le=1, description="share of the positions drawn at each step")
    positions: Literal["visible", "predicts_masked", "all"] = Field(
        "visible",
        description="where: tokens that stand unchanged in the noisy text; where a masked token is predicted, against"
        " the parent's state that predicts the same; all, each against the parent's state at the same token",
    )
    margin: float = Field(0.0, ge=0, lt=math.pi, description="angle below which nothing is asked, radians")

    _inner: Any = PrivateAttr(None)
    _about: About | None = PrivateAttr(None)
    _teacher: Denoiser | None = PrivateAttr(None)
    _anchors: Kept | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _built(self) -> Self:
        if self.over.get("type") in ("autoregressive", "align"):
            raise ValueError(f"over: {self.over['type']} has no noisy text; name a diffusion objective")
        self._inner = registry.build("objectives", self.over, "over")
        return self

    @property
    def companions(self) -> tuple[str, ...]:
        """Those of `over`, and the parent where it is named and its states are not on disk."""
        own = (self.parent,) if self.parent and self._factor(0.0, 1.0) and not self.anchors else ()
        return (*self._inner.companions, *(path for path in own if path not in self._inner.companions))

    @property
    def compares_with_origin(self) -> bool:
        """Whether the parent is what the run began from, and runs beside."""
        own = not self.parent and self._factor(0.0, 1.0) and not self.anchors
        return bool(own or self._inner.compares_with_origin)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Those of `over`."""
        made: tuple[Pass, ...] = self._inner.passes
        return made

    def _factor(self, *done: float) -> float:
        last = self.weight if self.weight_last is None else self.weight_last
        return max(self.weight + (last - self.weight) * one for one in done)

    def prepare(self, about: About) -> Self:
        """With its parent at hand. ConfigError where there is none, or the layers asked for are not to be had."""
        made = self.model_copy()
        made._inner, made._about = self._inner.prepare(about), about
        if not self._factor(0.0, 1.0):
            return made
        if about.watch is None or about.kept is None:
            raise ConfigError(
                "objective align: this model has no layers whose outputs can be read; use a model of kind hf"
            )
        path = self.parent or about.origin
        if not path:
            raise ConfigError(
                "objective.parent: none is named, and model.path is no AR model (it is new, or hildanext.json records a"
                " conversion); set objective.parent to the folder of the AR parent"
            )
        if self.anchors:
            made._anchors = about.kept("anchors", self.anchors, path)
        elif self.parent or about.parent is None:
            made._teacher = about.load(path)
        return made._with_layers(about)

    def _with_layers(self, about: About) -> Self:
        kept = list(self._anchors.facts["layers"]) if self._anchors is not None else list(range(1, about.layers + 1))
        low, high = (share * about.layers for share in self.depth)
        wanted = self.layers or tuple(number for number in kept if low < number <= high + 1e-9)
        missing = [number for number in wanted if number not in kept]
        if missing or not wanted:
            of = f"{self.anchors} has {kept}" if self._anchors is not None else f"there are 1 to {about.layers}"
            raise ConfigError(f"objective.layers: {missing or 'no layer in objective.depth'}; {of}")
        return self.model_copy(update={"layers": tuple(wanted)})

    def at(self, done: float) -> Self:
        """With the weight of this step, `over` too."""
        made = self.model_copy(update={"weight": self._factor(done), "weight_last": None})
        made._inner = self._inner.at(done)
        return made

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        """The reports of `losses` as one."""
        return merged(list(self.losses(model, batch, block, rng)))

    def losses(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> Iterator[LossReport]:
        """The reports of `over`, those of graded forwards with their share of the term; part `align`: its distance."""
        if not self.weight:
            yield from self._inner.losses(model, batch, block, rng)
            return
        own = torch.Generator().set_state(rng.get_state())
        own.manual_seed(base_seed(own) ^ SALT)
        layers, uniform = self.drawn(own), row_uniforms(batch, own, 1)[0]
        hers = self._states(model, batch, layers)
        assert self._about is not None
        watched = _Watched(model, self._about.watch, layers)
        views = sum(one.views for one in self.passes if not one.causal)
        for report in self._inner.losses(watched, batch, block, rng):
            seen, watched.seen = watched.seen, None
            yield report if seen is None else self._aligned(report, seen, hers, uniform, model, views)

    def drawn(self, rng: torch.Generator) -> tuple[int, ...]:
        """The layers of a step, ascending: `sample_layers` of them, each as likely as any other."""
        count = self.sample_layers or len(self.layers)
        order = torch.randperm(len(self.layers), generator=rng)[:count].tolist()
        return tuple(sorted(self.layers[place] for place in order))

    @torch.no_grad()
    def _states(self, model: Denoiser, batch: Batch, layers: tuple[int, ...]) -> Mapping[int, Tensor]:
        assert self._about is not None and self._about.watch is not None
        if self._anchors is not None:
            places = [list(self._anchors.facts["layers"]).index(number) for number in layers]
            found = self._anchors.rows(batch, places)
            return {number: found[:, :, place] for place, number in enumerate(layers)}
        source = model if self._teacher is None else self._teacher
        parent = self._about.parent if self._teacher is None else None
        with parent() if parent is not None else nullcontext(), self._about.watch(source, layers) as states:
            source.causal_features(batch, torch.zeros_like(batch.learn))
        return dict(states)

    def _aligned(
        self, report: LossReport, seen: _Seen, hers: Mapping[int, Tensor], uniform: Tensor, model: Denoiser, views: int
    ) -> LossReport:
        times = len(seen.noisy) // len(uniform)
        chosen, late = self.compared(seen.noisy, seen.batch, seen.block, model)
        chosen = chosen & (uniform.repeat(times, 1) < self.sample_positions)
        weight = torch.full(chosen.shape, 1 / self.sample_positions, device=chosen.device)
        if isinstance(self._inner, MaskAndEdit):
            weight = weight * self._inner.row_factor(maskable(seen.batch, model.mask_id), seen.batch)
        distances = [
            angular_distance(
                _at(seen.states[number], chosen, late[0]), _at(state.repeat(times, 1, 1), chosen, late[1]), self.margin
            )
            for number, state in hers.items()
        ]
        distance = torch.stack(distances).mean(dim=0)
        total = report.total + self.weight / views * (weight[chosen].to(distance) * distance).sum().float()
        parts, counts = {"align": distance.detach().double().sum()}, {"align": chosen.sum().double()}
        return replace(report, total=total, parts={**report.parts, **parts}, counts={**report.counts, **counts})

    def compared(self, noisy: Tensor, batch: Batch, block: int, model: Denoiser) -> tuple[Tensor, tuple[bool, bool]]:
        """([B, L] bool: the tokens whose states are compared; whether the student's, and the parent's, is the one
        before the token's own position). noisy [B, L] int64: the text of the forward."""
        can = maskable(batch, model.mask_id)
        if self.positions != "predicts_masked":
            return (can & (noisy == batch.tokens) if self.positions == "visible" else can), (False, False)
        asked = can & (noisy == model.mask_id) & (batch.positions() > 0)
        if model.shift == "none":
            return asked, (False, True)
        length = noisy.shape[1]
        blocks = block_ids(length, block if 0 < block < length else length, batch.docs, model.block_grid)
        asked[:, 1:] &= (blocks[:, 1:] == blocks[:, :-1]).expand(len(noisy), -1)
        return asked, (True, True)


def angular_distance(student: Tensor, parent: Tensor, margin: float = 0.0) -> Tensor:
    """1 - cos(max(0, angle - margin)) of the rows of [n, D], [n] float32 (float64 of float64); margin 0: 1 - cos.
    Source: arXiv:2605.06885, cosine distance of states."""
    if student.dtype != torch.float64:
        student, parent = student.float(), parent.float()
    cosine = torch.nn.functional.cosine_similarity(student, parent.to(student), dim=-1)
    if margin == 0:
        return 1 - cosine
    outside = cosine < math.cos(margin)
    # inside the margin the root's slope is infinite and its value unused
    sine = (1 - torch.where(outside, cosine, torch.zeros_like(cosine)).square()).clamp(min=0).sqrt()
    return torch.where(outside, 1 - (cosine * math.cos(margin) + sine * math.sin(margin)), torch.zeros_like(cosine))


def _at(states: Tensor, chosen: Tensor, before: bool) -> Tensor:
    states = states[:, : chosen.shape[1]]
    return states[:, :-1][chosen[:, 1:]] if before else states[chosen]
