# The protocol that models meet at: every stand-in of these tests has all of it, and a model that lacks a part fails.
# Entry points: pytest.
# What the real models make of it is tested in test/models.
"""Tests of core.types.Denoiser and of the stand-ins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core.checks import rng
from core.recorder import Recorder, build, example
from core.stand_ins import LayerModel, TableModel, UniformModel, batch_of
from stand_in import StandIn

from hildanext.config.noise import NoiseConfig
from hildanext.core.likelihood import block_elbo
from hildanext.core.noise import corrupt
from hildanext.core.types import Denoiser

DECLARED = sorted(name for name in vars(Denoiser) if not name.startswith("_") or name == "__call__")


class Lacking:
    """A LayerModel that has everything but one attribute."""

    def __init__(self, name: str) -> None:
        self._model, self._name = LayerModel(), name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise AttributeError(f"no {name}")
        return getattr(self._model, name)


def missing(model: object) -> list[str]:
    return [name for name in DECLARED if not hasattr(model, name)]


@pytest.mark.parametrize(
    "model",
    [StandIn(), UniformModel(9), TableModel(3, 2), LayerModel(), Recorder()],
    ids=lambda model: type(model).__name__,
)
def test_a_stand_in_has_everything_the_protocol_declares(model):
    assert len(DECLARED) > 12 and missing(model) == []
    assert model.head().shape[0] == model.vocab_size and model.head().dtype == model.dtype


def test_a_model_that_lacks_a_declared_attribute_is_seen():
    assert missing(Lacking("exact")) == ["exact"]


def test_a_stand_in_takes_the_attributes_it_has_and_no_others():
    assert StandIn(window=8, end_ids=frozenset({3})).end_ids == {3} and StandIn().window == 0
    with pytest.raises(TypeError, match="windo"):
        StandIn(windo=8)


def test_a_computation_that_is_not_scripted_is_an_error():
    batch, bare = example(), StandIn(vocab_size=12, mask_id=11)
    for call in (lambda: bare.noisy_features(batch.tokens, batch, 4, batch.learn), lambda: bare(batch.tokens)):
        with pytest.raises(NotImplementedError, match="StandIn scripts no"):
            call()


def test_a_denoiser_without_a_block_grid_fails_and_is_not_trained_on_another():
    batch = example()
    for compute in (
        lambda model: corrupt(NoiseConfig(), model, batch, 4, rng()),
        lambda model: build("mask_and_edit").loss(model, batch, 4, rng()),
        lambda model: block_elbo(model, batch, 4, rng()),
    ):
        compute(LayerModel())
        with pytest.raises(AttributeError, match="block_grid"):
            compute(Lacking("block_grid"))


def test_masks_and_bounds_follow_the_grid_of_the_model():
    docs = torch.tensor([[0] * 3 + [1] * 5])
    batch = batch_of(torch.randint(0, 11, (1, 8), generator=rng()), docs=docs)
    rates, bounds = [], []
    for grid in ("global", "per_document"):
        model = LayerModel()
        model.block_grid = grid
        (view,) = corrupt(NoiseConfig(), model, batch, 4, rng())
        rates.append((view.rate[0, 1:] != view.rate[0, :-1]).nonzero()[:, 0].tolist())
        bounds.append(block_elbo(model, batch, 4, rng()).nats)
    assert rates == [[2, 3], [2, 6]]
    assert abs(bounds[0] - bounds[1]) > 1e-6
