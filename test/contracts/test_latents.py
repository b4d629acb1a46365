# What every type of latent model keeps: a finite loss with a gradient, buffers that only training moves, texts of its
# own vocabulary from any number of steps, and the same of both for the same seed.
# Entry points: pytest. A new type is found by its file; its formulas are tested in test/core.
# The parent is a random network over the story world's tokenizer.
"""Contract of the latent types."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hildanext.core.batches import document_batch
from hildanext.core.latent import Draw, LatentType
from hildanext.core.types import Batch
from hildanext.models.latent import LatentDenoiser, new_latent
from hildanext.registry import build, names

NAMES = names("latents")
SMALL: dict[str, dict[str, Any]] = {
    "cola": {"alone": 0.0, "vae_layers": 1, "layers": 1, "block": 8, "heads": 2},
    "ldlm": {"layer": -1, "latents": 4, "size": 4, "encoder": 1, "dit": 1, "decoder": 1, "width": 32},
    "vfm": {"layers": 1, "width": 16, "block": 8, "looks": 2},
}
"""Fields that make a type small enough for a test; a type that needs none is not here."""


@pytest.fixture(scope="module")
def made(loaded: Any) -> Any:
    known: dict[str, LatentDenoiser] = {}

    def of(name: str) -> LatentDenoiser:
        if name not in known:
            known[name] = new_latent(copy.deepcopy(loaded), {"type": name, **SMALL.get(name, {})}, 0)
        return known[name]

    return of


def example() -> Batch:
    """Two documents of 24 and 15 tokens, the second with a prompt of 4 that is not learned; padded to 32."""
    ids = torch.randint(100, 900, (2, 24), generator=torch.Generator().manual_seed(0)).tolist()
    return document_batch([(ids[0], 0), (ids[1][:15], 4)], 0, 32)


def loss(model: LatentDenoiser, done: float, seed: int) -> Any:
    return model.latent.loss(example(), done, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_finite_counts_its_tokens_and_trains(made: Any, name: str) -> None:
    model = made(name).train()
    for done in (0.0, 0.5, 0.999):
        model.zero_grad()
        found = loss(model, done, 1)
        assert torch.isfinite(found.total) and float(found.normaliser) == example().learn.sum()
        assert all(torch.isfinite(value).all() for value in found.parts.values())
        found.total.backward()
        grads = [one.grad for one in model.parameters() if one.grad is not None]
        assert grads and all(torch.isfinite(one).all() for one in grads)
        assert any(bool(one.any()) for one in grads)
    assert all(one.requires_grad for one in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_repeats_itself_and_moves_no_buffer(made: Any, name: str) -> None:
    model = made(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        first, again = (float(loss(model, 0.99, 1).total) for _ in range(2))
    assert first == again
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 3])
def test_texts_are_long_enough_and_of_the_vocabulary(made: Any, name: str, steps: int) -> None:
    model = made(name).eval()
    if model.reader is not None:
        pytest.skip(f"{name}: texts are the block decoder's")
    rngs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    with torch.no_grad():
        draw = Draw(steps, model.latent.samplers[0])
        pieces = list(model.latent.sample([[100, 101, 102], []], 20, draw, rngs))
    for row in range(2):
        ids = [token for piece in pieces for token in piece.tokens[row]]
        assert len(ids) >= 20 and model.mask_id not in ids and 0 <= min(ids) <= max(ids) < model.vocab_size
    assert sum(piece.forwards for piece in pieces) >= steps


@pytest.mark.parametrize("name", NAMES)
def test_a_type_says_its_defaults_and_none_of_its_parameters_is_the_parents(made: Any, name: str) -> None:
    model, kind = made(name), build("latents", {"type": name, **SMALL.get(name, {})})
    assert isinstance(kind, LatentType) and kind.sampler in model.latent.samplers
    parents = {id(one) for one in model.latent.ground.parent.parameters()}
    assert not parents & {id(one) for one in model.parameters()}
    assert model.section["type"] == name and model.section["steps"] == kind.steps
