# Cached, uncached, fused, separate and chunked decoding give the same text, and the text an independent decoder gives.
# Entry points: the tests; the oracle is reference.reference_decode.
# Tiny random Qwen3 and Llama, float32, greedy and sampled.
"""Exactness of block decoding."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from decoding.reference import MASK, block_causal_logits, loaded, reference_decode

from hildanext.config.decode import DecodeConfig
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request
from hildanext.registry import names

BLOCK = 8
WAYS: dict[str, dict[str, Any]] = {
    "uncached": {"cache": False},
    "separate commit": {"fuse": False},
    "prefill in single blocks": {"step_tokens": BLOCK},
}
KINDS: dict[str, dict[str, Any]] = {
    "no editing": {"tau_mask": 0.15, "tau_edit": None},
    "editing": {"tau_mask": 0.12, "tau_edit": 0.1, "overrides": {"max_post_steps": 4}},
    "edit freely": {"tau_mask": 0.2, "tau_edit": 0.0, "overrides": {"max_post_steps": 4}},
    "sampled": {
        "tau_mask": 0.1,
        "tau_edit": 0.2,
        "temperature": 1.0,
        "top_k": 20,
        "seed": 5,
        "overrides": {"max_post_steps": 3},
    },
    "nucleus": {"tau_mask": 0.1, "tau_edit": None, "temperature": 0.8, "top_p": 0.9, "seed": 6},
    "guided": {"tau_mask": 0.15, "tau_edit": 0.15, "cfg_scale": 0.7, "overrides": {"max_post_steps": 3}},
}


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    source = random.Random(f"{length}-{seed}")
    return tuple(source.randrange(3, MASK) for _ in range(length))


def decode(parts: Any, ids: tuple[int, ...], new: int, ways: dict[str, Any], kind: dict[str, Any]) -> Any:
    engine = BlockEngine(parts, DecodeConfig(block=BLOCK, **ways))
    return engine.generate(Request.of(prompt_ids=ids, max_new_tokens=new, ignore_eos=True, **kind))


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def parts(request: Any, random_model: Any) -> Any:
    return loaded(random_model(request.param, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_caching_gives_the_same_tokens(parts: Any, kind: str) -> None:
    for length in (0, BLOCK - 1, BLOCK, 2 * BLOCK + 1):
        plain = decode(parts, prompt(length), 9, {}, KINDS[kind])
        for way, settings in WAYS.items():
            other = decode(parts, prompt(length), 9, settings, KINDS[kind])
            assert other.token_ids == plain.token_ids, (way, length)
            assert other.metrics.steps == plain.metrics.steps, (way, length)


@pytest.mark.parametrize("kind", ["no editing", "editing", "edit freely"])
def test_tokens_equal_an_independent_decoder(parts: Any, kind: str) -> None:
    model = parts.denoiser.model
    for length in (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1):
        mine = decode(parts, prompt(length, 1), 11, {}, KINDS[kind])
        taus = KINDS[kind]["tau_mask"], KINDS[kind]["tau_edit"]
        assert list(mine.token_ids) == reference_decode(model, list(prompt(length, 1)), 11, BLOCK, *taus, post=4)


@pytest.mark.parametrize("kind", ["no editing", "editing", "sampled"])
def test_committed_keys_and_values_are_those_of_one_forward_over_the_final_text(parts: Any, kind: str) -> None:
    engine = BlockEngine(parts, DecodeConfig(block=BLOCK))
    engine.submit(Request.of(prompt_ids=prompt(13), max_new_tokens=30, ignore_eos=True, **KINDS[kind]))
    while engine.running[0].canvas.committed < 4 * BLOCK if engine.running else True:
        engine.step()
    live = engine.running[0]
    text = live.canvas.tokens[: live.canvas.committed].tolist()
    _, cache = block_causal_logits(parts.denoiser.model, text, BLOCK)
    for layer in range(parts.denoiser.config.num_hidden_layers):
        key, value = engine.store.committed(live.slots[0], layer)
        torch.testing.assert_close(key, cache.layers[layer].keys[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(value, cache.layers[layer].values[0], atol=1e-5, rtol=1e-5)


def test_keys_kept_from_the_forward_that_changed_a_block_would_be_seen(parts: Any, monkeypatch: Any) -> None:
    from dataclasses import replace

    from hildanext.decoding.canvas import RequestCanvas

    right = [decode(parts, prompt(5, s), 20, {}, KINDS["no editing"]).token_ids for s in range(4)]
    apply = RequestCanvas.apply

    def stale(self: Any, *rest: Any) -> Any:
        step = apply(self, *rest)
        return replace(step, committed_on_entry=step.final)

    monkeypatch.setattr(RequestCanvas, "apply", stale)
    assert [decode(parts, prompt(5, s), 20, {}, KINDS["no editing"]).token_ids for s in range(4)] != right


def test_fusing_the_commit_saves_one_forward_per_block(parts: Any) -> None:
    fused = decode(parts, prompt(16), 32, {}, KINDS["no editing"]).metrics
    separate = decode(parts, prompt(16), 32, {"fuse": False}, KINDS["no editing"]).metrics
    assert fused.forwards == fused.steps
    assert separate.forwards == separate.steps + 1 + 3


def test_a_shifted_model_is_cached_exactly_too(random_model: Any) -> None:
    from hildanext.models.adapter import HFDenoiser

    parts = loaded(random_model("qwen3", seed=2))
    parts.denoiser = HFDenoiser(parts.denoiser.model, MASK, shift="clean").eval()
    for length in (0, 3, BLOCK, 2 * BLOCK + 3):
        plain = decode(parts, prompt(length), 20, {}, KINDS["editing"]).token_ids
        assert decode(parts, prompt(length), 20, {"cache": False}, KINDS["editing"]).token_ids == plain
        assert decode(parts, prompt(length), 20, {"fuse": False}, KINDS["editing"]).token_ids == plain


def test_the_same_seed_repeats_and_another_seed_or_sample_differs(parts: Any) -> None:
    kind = KINDS["sampled"]
    first = decode(parts, prompt(9), 24, {}, kind).token_ids
    assert decode(parts, prompt(9), 24, {}, kind).token_ids == first
    assert decode(parts, prompt(9), 24, {}, {**kind, "seed": 99}).token_ids != first
    assert decode(parts, prompt(9), 24, {}, {**kind, "sample": 1}).token_ids != first


def test_zero_guidance_is_the_conditional_model(parts: Any) -> None:
    plain = decode(parts, prompt(9), 24, {}, KINDS["no editing"]).token_ids
    assert decode(parts, prompt(9), 24, {}, {**KINDS["no editing"], "cfg_scale": 0.0}).token_ids == plain
    assert decode(parts, prompt(9), 24, {}, {**KINDS["no editing"], "cfg_scale": 3.0}).token_ids != plain


@pytest.mark.parametrize("name", names("policies"))
def test_every_policy_decodes_the_same_cached_and_uncached(random_model: Any, name: str) -> None:
    parts, kind = loaded(random_model("qwen3", seed=4)), {"policy": {"type": name}, "temperature": 0.7, "seed": 3}
    plain = decode(parts, prompt(9), 12, {}, kind)
    assert MASK not in plain.token_ids and len(plain.token_ids) == 12
    for settings in ({"cache": False}, {"fuse": False}):
        assert decode(parts, prompt(9), 12, settings, kind).token_ids == plain.token_ids


def test_packed_and_padded_forwards_of_ragged_windows_are_equal(parts: Any) -> None:
    from hildanext.decoding.forward import Row, _packed, _padded
    from hildanext.decoding.kv_store import KVStore

    tokens = torch.randint(3, MASK, (3, 40), generator=torch.Generator().manual_seed(0))
    stores = [KVStore(), KVStore()]
    for store, run in zip(stores, (_packed, _padded), strict=True):
        store.reserve(3, 48)
        for _ in range(3):
            store.add()
        for sizes in ((8, 16, 4), (16, 8, 8), (8, 8, 16)):
            rows = []
            for slot, size in enumerate(sizes):
                start, block = store.lengths[slot], (8, 8, 4)[slot]
                rows.append(Row(slot, start, tokens[slot, start : start + size], torch.arange(size) >= 2, block))
            with torch.no_grad():
                store.last = run(parts.denoiser, store, rows, torch.device("cpu"))
            for slot, size in enumerate(sizes):
                store.commit(slot, size)
    torch.testing.assert_close(stores[0].last, stores[1].last, atol=1e-5, rtol=1e-5)
    for slot in range(3):
        for layer in range(2):
            ours, theirs = (store.committed(slot, layer) for store in stores)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
