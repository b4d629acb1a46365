# A real trained checkpoint: twenty prompts give the same text cached, uncached, separate, batched and preempted.
# Entry points: the tests; they skip where the real assets are missing.
# stories260K is an AR model, so its block-diffusion text is poor; equality is what is tested, not quality.
"""Exactness on trained weights."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from decoding.oracle import Ask, decode
from decoding.subjects import JOINT

from hildanext.config.decode import DecodeConfig
from hildanext.config.model import ModelConfig
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Commit, Done
from hildanext.decoding.request import Request, Result

MODES: tuple[dict[str, Any], ...] = (
    {"mode": "S_MODE", "overrides": {"max_post_steps": 2}},
    {"mode": "Q_MODE", "overrides": {"max_post_steps": 2}},
    {"tau_mask": 0.15, "tau_edit": None},
    {"tau_mask": 0.1, "tau_edit": None, "temperature": 0.9, "top_p": 0.95},
)


@pytest.fixture(scope="module")
def parts(assets: Path) -> Any:
    from hildanext.models.load import load_model

    return load_model(ModelConfig(path=str(assets / "stories260k-hf"), device="cpu"))


@pytest.fixture(scope="module")
def requests(assets: Path) -> list[Request]:
    lines = (assets / "tinystories" / "tinystories_clean.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:20]]
    source = random.Random(0)
    return [
        Request.of(
            prompt=" ".join(text.split()[: source.randrange(1, 14)]), max_new_tokens=10, seed=index, ignore_eos=True,
            **MODES[index % len(MODES)],
        )
        for index, text in enumerate(texts)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def plain(parts: Any, requests: list[Request]) -> list[Result]:
    return [BlockEngine(parts, DecodeConfig(block=8)).generate(request) for request in requests]


@pytest.mark.parametrize("settings", [{"cache": False}, {"fuse": False}, {"step_tokens": 8}])
def test_twenty_prompts_one_by_one(parts: Any, requests: Any, plain: Any, settings: dict[str, Any]) -> None:
    engine = BlockEngine(parts, DecodeConfig(block=8, **settings))
    for request, wanted in zip(requests, plain, strict=True):
        found = engine.generate(request)
        assert (found.text, found.token_ids) == (wanted.text, wanted.token_ids)


@pytest.mark.parametrize("preempt", [0.0, 0.2])
def test_twenty_prompts_together(parts: Any, requests: Any, plain: Any, preempt: float) -> None:
    engine, source = BlockEngine(parts, DecodeConfig(block=8, requests=6)), random.Random(1)
    numbers = [engine.submit(request) for request in requests]
    results, texts = {}, dict.fromkeys(numbers, "")
    while engine.pending:
        if engine.running and source.random() < preempt:
            engine.preempt(source.choice(engine.running).number)
        for event in engine.step():
            if isinstance(event, Commit):
                texts[event.request] += event.text
            elif isinstance(event, Done):
                results[event.request] = event.result
    assert [results[number].token_ids for number in numbers] == [result.token_ids for result in plain]
    assert [texts[number] for number in numbers] == [result.text for result in plain]


def test_greedy_text_is_that_of_an_independent_decoder(parts: Any, requests: Any, plain: Any, assets: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(assets / "stories260k-hf", attn_implementation="eager").eval()
    model.resize_token_embeddings(parts.denoiser.vocab_size)
    model.load_state_dict(parts.denoiser.model.state_dict())
    policy = {**JOINT, "tau_mask": 0.15, "tau_edit": None}
    for request, wanted in list(zip(requests, plain, strict=True))[2::4]:
        ids = tuple(parts.tokenizer(request.prompt)["input_ids"])
        assert list(wanted.token_ids) == decode(model, Ask(ids, 10, 8, parts.denoiser.mask_id, policy))


def test_stop_strings_end_the_text_before_them(parts: Any, plain: Any, requests: Any) -> None:
    request, wanted = requests[2], plain[2]
    stop = wanted.text[len(wanted.text) // 2 :][:2]
    found = BlockEngine(parts, DecodeConfig(block=8)).generate(request.model_copy(update={"stop": (stop,)}))
    assert found.finish_reason == "stop" and found.text == wanted.text[: wanted.text.index(stop)]


def test_gaps_are_filled_and_the_rest_of_the_text_stays(parts: Any) -> None:
    asked = Request.of(prompt="Once upon a <gap:3> there was a <gap:5>. The end.", infill=True)
    result = BlockEngine(parts, DecodeConfig(block=8)).generate(asked)
    assert result.text.startswith("Once upon a") and result.text.endswith(". The end.") and "there was a" in result.text
    assert "block of 8" in result.notes[0] and result.finish_reason == "length"


def test_int8_is_an_option_that_changes_little(parts: Any) -> None:
    import torch

    from hildanext.models.quantise import int8

    small = int8(parts)
    ids = torch.arange(3, 35).unsqueeze(0)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    with torch.no_grad():
        exact, quick = (one.denoiser(ids, torch.arange(32).unsqueeze(0), mask) for one in (parts, small))
    assert 0 < (quick - exact).norm() / exact.norm() < 0.2
    text = BlockEngine(small, DecodeConfig(block=8)).generate(Request.of(prompt="Once", max_new_tokens=8))
    assert text.metrics.tokens <= 8
