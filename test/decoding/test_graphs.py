# Captured decoding forwards: buckets, fixed addresses, padding nobody sees, and the texts of eager decoding.
# Entry points: pytest.
# There is no GPU here: a stand-in captures by running the same work again, on the same tensors, as a graph would.
"""Tests of decoding/graphs.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from decoding.reference import MASK, loaded

from hildanext.config.decode import CarrySection, DecodeConfig
from hildanext.core.mixture import Mixture
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.forward import ForwardRow, forward
from hildanext.decoding.graphs import Bucket, Graphed, Replay, _Step
from hildanext.decoding.request import Request
from hildanext.decoding.store import StateStore
from hildanext.models.denoiser import HFDenoiser

ASKS = [
    Request.of(prompt_ids=tuple(range(5, 5 + size)), max_new_tokens=new, ignore_eos=True, block=4)
    for size, new in ((9, 14), (3, 8), (17, 11))
]


def again(work: Replay) -> Replay:
    """What a capture is on a CPU."""
    return work


def texts(parts: Any, denoiser: Any, asks: list[Request] = ASKS) -> list[tuple[int, ...]]:
    """Token ids of the requests decoded together."""
    parts = type(parts)(**{**vars(parts), "denoiser": denoiser})
    return [result.token_ids for result in Driver(BlockEngine(parts, DecodeConfig(requests=2))).run(asks)]


def addresses(graphed: Graphed) -> list[int]:
    """Where keys, values and inputs lie."""
    held = [one.data_ptr() for layer in graphed.layers.values() for one in layer.held]
    return held + [one.data_ptr() for step in graphed.steps.values() for one in (step.tokens, step.mask, step.places)]


@pytest.mark.parametrize(
    ("size", "wanted"), [((1, 8, 128), (1, 8, 128)), ((3, 9, 129), (4, 16, 256)), ((5, 1, 1), (8, 8, 128))]
)
def test_a_bucket_is_the_least_that_holds_a_forward(size: tuple[int, int, int], wanted: tuple[int, int, int]) -> None:
    assert Bucket.of(*size) == wanted and Bucket.of(*wanted) == wanted


@pytest.mark.parametrize("shift", ["none", "clean"])
def test_captured_texts_are_those_of_eager_decoding_and_nothing_moves(
    random_model: Callable[..., Any], shift: str
) -> None:
    parts = loaded(random_model("qwen3"))
    plain = HFDenoiser(parts.denoiser.model, MASK, shift=shift).eval()
    graphed = Graphed(plain, 4, 64, again)
    wanted = texts(parts, plain)
    assert texts(parts, graphed) == wanted
    before, captured = addresses(graphed), graphed.captured
    assert texts(parts, graphed) == wanted and [texts(parts, graphed, [ask])[0] for ask in ASKS] == wanted
    assert addresses(graphed)[: len(before)] == before and captured <= graphed.captured <= 6
    assert texts(parts, plain) == wanted


@pytest.mark.parametrize("carry", ["rcd", "soft"])
def test_a_forward_that_carries_is_not_replayed(random_model: Callable[..., Any], carry: str) -> None:
    parts = loaded(random_model("qwen3"))
    asks = [one.model_copy(update={"carry": CarrySection(type=carry)}) for one in ASKS]
    graphed = Graphed(parts.denoiser, 4, 64, again)
    assert texts(parts, graphed, asks) == texts(parts, parts.denoiser, asks)


def test_a_mixture_stands_in_the_row_of_its_slot(random_model: Callable[..., Any]) -> None:
    denoiser = loaded(random_model("qwen3")).denoiser
    where = torch.tensor([1]), torch.tensor([[3, 9]]), torch.tensor([[0.5, 0.5]]), torch.tensor([False])
    mixture = Mixture(torch.tensor([0]), *where)
    every = torch.ones(4, dtype=torch.bool)
    found = []
    for model, mixed in ((denoiser, mixture), (Graphed(denoiser, 2, 16, again), mixture), (denoiser, None)):
        store = StateStore()
        store.reserve(2, 16)
        _, slot = store.add(), store.add()
        row = ForwardRow(slot, 0, torch.tensor([5, MASK, 7, 8]), every, 4, mixed)
        with torch.no_grad():
            found += forward(model, store, [row], torch.device("cpu"))
    assert torch.allclose(found[0], found[1], atol=1e-6) and not torch.allclose(found[0], found[2], atol=1e-3)


def test_a_larger_request_makes_room_and_is_captured_anew(random_model: Callable[..., Any]) -> None:
    parts = loaded(random_model("qwen3"))
    graphed = Graphed(parts.denoiser, 1, 16, again)
    texts(parts, graphed, ASKS[:1])
    old = dict(graphed.steps)
    long = [Request.of(prompt_ids=tuple(i % 60 for i in range(150)), max_new_tokens=6, ignore_eos=True, block=4)]
    assert texts(parts, graphed, long) == texts(parts, parts.denoiser, long)
    assert graphed.room[1] >= 156 and not set(map(id, old.values())) & set(map(id, graphed.steps.values()))


def faults() -> Iterator[Any]:
    """Padding that is seen, and padding that writes over the first position."""
    fill = _Step.fill

    def seen(step: Any, *what: Any) -> None:
        fill(step, *what)
        step.mask[:] = True

    def written(step: Any, *what: Any) -> None:
        fill(step, *what)
        step.places[step.places == step.room[1]] = 0

    yield pytest.param(seen, id="seen")
    yield pytest.param(written, id="written")


@pytest.mark.parametrize("fault", faults())
def test_planted_padding_that_is_no_padding_changes_texts(
    fault: Any, random_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = loaded(random_model("qwen3"))
    wanted = texts(parts, parts.denoiser)
    monkeypatch.setattr(_Step, "fill", fault)
    assert texts(parts, Graphed(parts.denoiser, 4, 64, again)) != wanted
