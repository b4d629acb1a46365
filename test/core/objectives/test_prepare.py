# What an objective may do before training: nothing, bar ids, load a frozen teacher, compute as the parent it came from.
# Entry points: pytest.
# Distilled and Tethered are objectives as a user would write them, each in one class and nothing else.
"""Tests of core/objective.py and of the seam `prepare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import pytest
import torch
from core.recorder import build, example, rng
from core.stand_ins import LayerModel, UniformModel
from pydantic import PrivateAttr
from torch import Tensor

from hildanext import registry
from hildanext.config.noise import NoiseConfig
from hildanext.core.linear_kl import Teacher, linear_kl
from hildanext.core.noise import corrupt
from hildanext.core.objective import BaseObjective
from hildanext.core.types import About, Batch, Denoiser, LossReport


def about(load: Callable[[str], Denoiser] = lambda path: UniformModel(12), parent=None, special=(2, 3)) -> About:
    return About(8, special, torch.device("cpu"), load, parent, "models/parent")


class Distilled(BaseObjective):
    """KL(teacher || student) at the masked positions / their count."""

    teacher: str
    noise: NoiseConfig = NoiseConfig(replace=0.0)
    _frozen: Denoiser | None = PrivateAttr(None)

    @property
    def companions(self) -> tuple[str, ...]:
        return (self.teacher,)

    def prepare(self, about: About) -> Self:
        prepared = self.model_copy()
        prepared._frozen = about.load(self.teacher)
        return prepared

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        (view,) = corrupt(self.noise, model, batch, block, rng)
        with torch.no_grad():
            wanted = self._frozen.noisy_features(view.tokens, batch, block, view.m2t)
        teacher = Teacher(wanted, self._frozen.head(), exclude=model.mask_id)
        divergence = linear_kl(model.noisy_features(view.tokens, batch, block, view.m2t), model.head(), teacher)
        return LossReport(divergence.sum().float(), view.m2t.sum().float())


class Tethered(BaseObjective):
    """Squared distance of the causal features from the parent's, which is the model itself with its adapters off."""

    _about: About | None = PrivateAttr(None)

    def prepare(self, about: About) -> Self:
        prepared = self.model_copy()
        prepared._about = about
        return prepared

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        select = batch.learn & (batch.positions() > 0)
        with torch.no_grad(), self._about.parent():
            wanted = model.causal_features(batch, select)
        return LossReport((model.causal_features(batch, select) - wanted).square().sum().float(), select.sum().float())


class Adapted(LayerModel):
    """A LayerModel with one thing added to its states, which can be switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.extra, self.on = torch.nn.Parameter(torch.full((16,), 0.5, dtype=torch.float64)), True

    def body(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        return super().body(tokens, positions, mask) + (self.extra if self.on else 0)

    @contextmanager
    def parent(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True


@pytest.mark.parametrize("name", registry.names("objectives"))
def test_an_objective_needs_no_further_model_unless_it_says_so(name):
    assert build(name).companions == ()
    assert build(name).compares_with_origin == (name in ("distill", "align"))


def test_preparation_changes_nothing_unless_it_is_written():
    objective = build("autoregressive")
    assert objective.prepare(about()) is objective


OWN_NOISE = ("autoregressive", "align", "balance", "trajectory")
"""Objectives that draw no noise, have that of another, or mask along a recorded order."""


@pytest.mark.parametrize("name", [name for name in registry.names("objectives") if name not in OWN_NOISE])
def test_prepared_diffusion_objectives_draw_no_special_id_and_none_beyond_the_tokenizer(name):
    prepared = build(name, noise={"replace": 0.9, "forbidden": (5,)}).prepare(about())
    batch = example(rows=32)
    (view,) = corrupt(prepared.noise, LayerModel(), batch, 4, rng())
    changed = view.tokens[view.t2t & (view.tokens != batch.tokens)]
    assert set(changed.tolist()) == {0, 1, 4, 6, 7}


def test_an_objective_without_a_loss_says_which():
    with pytest.raises(ValueError, match="Silent defines no loss"):
        type("Silent", (BaseObjective,), {})().loss(LayerModel(), example(), 4, rng())


def distilled(teacher: LayerModel) -> tuple[Distilled, list[str]]:
    asked: list[str] = []

    def load(path: str) -> Denoiser:
        asked.append(path)
        return teacher.requires_grad_(False)

    return Distilled(teacher="models/teacher").prepare(about(load)), asked


def test_an_objective_with_a_teacher_is_one_class_and_is_the_divergence_by_hand():
    student, teacher = LayerModel(seed=1), LayerModel(seed=2)
    objective, asked = distilled(teacher)
    batch = example()
    report = objective.loss(student, batch, 4, rng())
    (view,) = corrupt(objective.noise, student, batch, 4, rng())
    logs = []
    for model in (student, teacher):
        logits = model.noisy_features(view.tokens, batch, 4, view.m2t) @ model.head().T
        logs.append(logits[:, : model.mask_id].log_softmax(1))
    wanted = (logs[1].exp() * (logs[1] - logs[0])).sum()
    assert abs(float((report.total - wanted).detach())) < 1e-4 and float(report.normaliser) == int(view.m2t.sum())
    assert asked == ["models/teacher"] == list(objective.companions)


def test_only_the_student_learns_from_a_teacher_and_nothing_once_they_agree():
    student, teacher = LayerModel(seed=1), LayerModel(seed=2)
    objective, _ = distilled(teacher)
    objective.loss(student, example(), 4, rng()).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(bool((p.grad != 0).any()) for p in student.parameters() if p.grad is not None)
    agreed = objective.loss(LayerModel(seed=2), example(), 4, rng())
    assert abs(float(agreed.total.detach())) < 1e-6


def test_an_objective_may_compare_a_model_with_itself_as_its_parent():
    model = Adapted()
    objective = Tethered().prepare(about(parent=model.parent))
    report = objective.loss(model, example(), 1, rng())
    assert abs(float((report.total / report.normaliser).detach()) - 16 * 0.5**2) < 1e-5
    report.total.backward()
    assert bool((model.extra.grad > 0).all()) and model.on
