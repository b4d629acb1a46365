# The two decoders of evaluation: the left-to-right side against transformers' own generate, and the clock of both.
# Entry points: pytest.
# The bundled parent writes sensible text, so greedy choices are clear and stop strings occur.
"""Tests of measure/generation.py and measure/left_to_right.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hildanext.config.decode import DecodeConfig
from hildanext.config.model import ModelConfig
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError
from hildanext.measure import generation
from hildanext.measure.generation import ARGenerator, DiffusionGenerator, TransformersGenerator
from hildanext.measure.task import cost
from hildanext.models.denoiser import network
from hildanext.models.load import load_model
from hildanext.world import story

NEW = 24


@pytest.fixture(scope="module")
def parent() -> Any:
    return load_model(ModelConfig(path="tiny-parent"))


def _unequal(count: int, **more: Any) -> list[Request]:
    prompts = [" ".join(story(f"9:{index}").text.split()[: 3 + 4 * index]) for index in range(count)]
    return [Request(prompt=text, max_new_tokens=NEW, sample=at, **more) for at, text in enumerate(prompts)]


def _forwards(parent: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    model, shapes = network(parent.denoiser).base_model, list[tuple[int, ...]]()
    forward = type(model).forward

    def seen(self: Any, *given: Any, **named: Any) -> Any:
        shapes.append(tuple(named["input_ids"].shape))
        return forward(self, *given, **named)

    monkeypatch.setattr(type(model), "forward", seen)
    return shapes


def test_transformers_in_padded_batches_writes_what_our_reading_writes(parent: Any) -> None:
    asked = _unequal(4)
    config = DecodeConfig(requests=3)
    found, ours = (kind(parent, config).complete(asked) for kind in (TransformersGenerator, ARGenerator))
    assert [one.text for one in found] == [one.text for one in ours] and len({one.text for one in found}) > 1
    assert [(one.ids, one.finish) for one in found] == [(one.ids, one.finish) for one in ours]
    assert cost(found)["tokens_per_forward"].value == 1.0 and all(one.seconds > 0 for one in found)
    warm = _unequal(2, temperature=1.5, top_k=40)
    assert all(0 < one.tokens <= NEW for one in TransformersGenerator(parent, config).complete(warm))


def test_unequal_prompts_share_a_batch_and_each_is_what_transformers_writes_for_it_alone(
    parent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _unequal(5)
    with monkeypatch.context() as patch:
        shapes = _forwards(parent, patch)
        found = ARGenerator(parent, DecodeConfig(requests=3)).complete(asked)
    assert [shape[0] for shape in shapes] == [3] * NEW + [2] * NEW
    for request, one in zip(asked, found, strict=True):
        ids = torch.tensor([parent.tokenizer(request.prompt)["input_ids"]])
        alone = network(parent.denoiser).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0,
            suppress_tokens=[parent.denoiser.mask_id],
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        assert list(one.ids) == alone[: one.tokens] and one.tokens == NEW


def test_draws_do_not_depend_on_who_shares_the_batch_and_obey_top_k(parent: Any) -> None:
    generator, asked = ARGenerator(parent, DecodeConfig()), _unequal(4, temperature=1.0)
    together, alone = (generator.complete(asked), [generator.complete([request])[0] for request in asked])
    assert [one.ids for one in together] == [one.ids for one in alone]
    again = generator.complete([asked[0], asked[0].model_copy(update={"sample": 7})])
    assert again[0].ids != again[1].ids
    greedy = generator.complete(_unequal(2))
    cut = generator.complete(_unequal(2, temperature=1.0, top_k=1))
    assert [one.ids for one in cut] == [one.ids for one in greedy]


def test_the_left_to_right_side_ends_at_stop_strings(parent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request = _unequal(1)[0]
    whole = ARGenerator(parent, DecodeConfig()).complete([request])[0].text
    stop = whole.split()[3]
    shapes = _forwards(parent, monkeypatch)
    found = ARGenerator(parent, DecodeConfig()).complete([request.model_copy(update={"stop": (stop,)})])[0]
    assert found.finish == "stop" and found.text == whole[: whole.index(stop)]
    assert len(shapes) == found.forwards < NEW


def test_a_text_beyond_the_window_is_refused_by_both(parent: Any) -> None:
    long = Request(prompt_ids=(5,) * 500, max_new_tokens=40)
    for generator in (ARGenerator(parent, DecodeConfig()), DiffusionGenerator(parent, DecodeConfig(block=4))):
        with pytest.raises(DecodeError, match="512 tokens"):
            generator.complete([long])


@pytest.mark.parametrize("kind", [ARGenerator, DiffusionGenerator])
def test_tokens_per_second_are_the_tokens_of_all_texts_over_the_seconds_that_passed(
    kind: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(generation, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    asked = [Request(prompt="Tom had" + " a" * index, max_new_tokens=8, ignore_eos=True) for index in range(4)]
    done = kind(loaded, DecodeConfig(requests=4)).complete(asked)
    measures = cost(done)
    speed, width = (measures["tokens_per_second"], measures["positions_per_forward"].value)
    assert measures["tokens_per_forward_unfused"].value <= measures["tokens_per_forward"].value
    assert width == 1.0 if kind is ARGenerator else width >= loaded.meta.block
    assert sum(one.seconds for one in done) == pytest.approx(4.0) and speed.value == pytest.approx(32 / 4)
    assert 0 < speed.low <= speed.value <= speed.high


@pytest.mark.parametrize("kind", [ARGenerator, DiffusionGenerator])
def test_a_sample_of_one_seed_is_not_the_first_of_the_next(kind: Any, loaded: Any) -> None:
    keys = [(seed, sample) for seed in (5, 6, 7) for sample in (0, 1, 2)]
    asked = [
        Request(prompt="Tom had", max_new_tokens=12, temperature=1.0, ignore_eos=True, seed=seed, sample=sample)
        for seed, sample in keys
    ]
    texts = [one.ids for one in kind(loaded, DecodeConfig()).complete(asked)]
    assert len(set(texts)) == len(keys)


@pytest.mark.parametrize("fields", [{"suffix": " b"}, {"infill": True}])
def test_a_gap_is_refused_where_nothing_behind_it_is_seen(parent: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(DecodeError, match="what follows a gap"):
        ARGenerator(parent, DecodeConfig()).complete([Request(prompt="a <gap:2>", max_new_tokens=2, **fields)])
