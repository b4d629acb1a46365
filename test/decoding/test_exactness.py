# Cached, uncached, fused, separate and chunked decoding give the same text; limits and budgets hold to the forward.
# Entry points: the tests; what they check is in checks and check_limits.
# Tiny random Qwen3 and Llama, float32, greedy and sampled.
"""Exactness of block decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding import check_limits, checks
from decoding.reference import MASK, committed, loaded
from decoding.subjects import BLOCK, SAMPLINGS, Subject, decoded, engine, opened, prompt, request
from torch import Tensor

CACHING = [
    ("no editing", "greedy"), ("editing", "greedy"), ("edit freely", "greedy"), ("editing", "sampled"),
    ("no editing", "nucleus"), ("editing", "guided sampled"),
]  # fmt: skip
OTHERS = [
    ("no last look", "sampled"), ("penalised", "guided"), ("static_quota", "greedy"), ("random", "nucleus"),
    ("random_topk", "sampled"), ("margin", "greedy"), ("entropy_bound", "guided"), ("factor", "sampled"),
    ("hierarchy", "nucleus"), ("credit", "greedy"), ("remask", "greedy"), ("remask", "guided sampled"),
]  # fmt: skip
LIMITS = (
    check_limits.limits_of_tau_mask_give_exact_forwards, check_limits.tau_mask_one_is_the_static_quota,
    check_limits.tau_edit_one_only_looks, check_limits.without_post_steps_editing_is_free,
    check_limits.free_editing_ends_at_a_fixed_point_or_its_budget, check_limits.prompts_are_never_edited,
    check_limits.a_model_that_prefers_the_mask_decodes_as_if_it_did_not,
    check_limits.zero_credit_is_the_plain_threshold, check_limits.text_ends_where_it_must,
)  # fmt: skip


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def subject(request: Any, random_model: Any) -> Subject:
    return opened(random_model, request.param)


@pytest.mark.parametrize(("policy", "sampling"), CACHING)
def test_every_way_of_caching_gives_the_same_tokens_at_every_prompt_length(
    subject: Subject, policy: str, sampling: str
) -> None:
    lengths = checks.LENGTHS if (policy, sampling) == ("editing", "greedy") else (0, BLOCK - 1, BLOCK, 2 * BLOCK + 1)
    checks.every_way_of_caching_agrees(subject, policy, sampling, lengths)


@pytest.mark.parametrize(("policy", "sampling"), OTHERS)
def test_every_policy_decodes_the_same_in_every_way(subject: Subject, policy: str, sampling: str) -> None:
    checks.every_way_of_caching_agrees(subject, policy, sampling, (BLOCK + OTHERS.index((policy, sampling)) % 3 - 1,))


@pytest.mark.parametrize(("policy", "sampling"), [*CACHING[:4], ("remask", "greedy")])
def test_committed_keys_and_values_are_those_of_one_forward_over_the_final_text(
    subject: Subject, policy: str, sampling: str
) -> None:
    checks.committed_keys_are_those_of_one_forward(subject, policy, sampling)


@pytest.mark.parametrize(("policy", "sampling"), [*CACHING[:4], *OTHERS])
def test_forwards_per_block_are_bounded_and_each_fills_a_mask(subject: Subject, policy: str, sampling: str) -> None:
    checks.forwards_are_bounded(subject, policy, sampling)


@pytest.mark.parametrize("check", LIMITS)
def test_at_the_ends_of_a_setting_the_decoder_does_what_the_setting_says(subject: Subject, check: Any) -> None:
    check(subject)


def test_fusing_the_commit_saves_one_forward_per_block(subject: Subject) -> None:
    asked = request(prompt(16), 32, "no editing")
    fused, separate = decoded(subject, asked).metrics, decoded(subject, asked, fuse=False).metrics
    assert fused.forwards == fused.steps
    assert separate.forwards == separate.steps + 1 + 3


def test_a_shifted_model_is_cached_exactly_too(random_model: Any) -> None:
    from hildanext.models.denoiser import HFDenoiser

    parts = loaded(random_model("qwen3", seed=2))
    parts.denoiser = HFDenoiser(parts.denoiser.model, MASK, shift="clean").eval()
    checks.every_way_of_caching_agrees(Subject(parts, None), "editing", "greedy", (0, 3, BLOCK, 2 * BLOCK + 3))


@pytest.mark.parametrize("sampling", [name for name in SAMPLINGS if name != "greedy" and name != "guided"])
def test_the_same_seed_repeats_and_another_seed_or_sample_differs(subject: Subject, sampling: str) -> None:
    first = decoded(subject, request(prompt(9), 24, "editing", sampling)).token_ids
    assert decoded(subject, request(prompt(9), 24, "editing", sampling)).token_ids == first
    assert decoded(subject, request(prompt(9), 24, "editing", sampling, seed=99)).token_ids != first
    assert decoded(subject, request(prompt(9), 24, "editing", sampling, sample=1)).token_ids != first


def test_zero_guidance_is_the_conditional_model(subject: Subject) -> None:
    plain = decoded(subject, request(prompt(9), 24, "no editing")).token_ids
    assert decoded(subject, request(prompt(9), 24, "no editing", cfg_scale=0.0)).token_ids == plain
    assert decoded(subject, request(prompt(9), 24, "no editing", cfg_scale=3.0)).token_ids != plain


def test_packed_and_padded_forwards_of_ragged_windows_are_equal(subject: Subject) -> None:
    from hildanext.decoding.forward import ForwardRow, _packed, _padded, _placed
    from hildanext.decoding.store import StateStore

    tokens = torch.randint(3, MASK, (3, 40), generator=torch.Generator().manual_seed(0))

    def packed(denoiser: Any, store: Any, rows: Any, device: Any) -> Tensor:
        return _packed(denoiser, store.packed(*_placed(rows), [row.block for row in rows]), rows, device)

    stores = [StateStore(), StateStore()]
    for store, run in zip(stores, (packed, _padded), strict=True):
        store.reserve(3, 48)
        for _ in range(3):
            store.add()
        for sizes in ((8, 16, 4), (16, 8, 8), (8, 8, 16)):
            rows = []
            for slot, size in enumerate(sizes):
                start, block = store.lengths[slot], (8, 8, 4)[slot]
                rows.append(ForwardRow(slot, start, tokens[slot, start : start + size], torch.arange(size) >= 2, block))
            with torch.no_grad():
                store.last = run(subject.parts.denoiser, store, rows, torch.device("cpu"))
            for slot, size in enumerate(sizes):
                store.commit(slot, size)
    torch.testing.assert_close(stores[0].last, stores[1].last, atol=1e-5, rtol=1e-5)
    for slot in range(3):
        for layer in range(2):
            ours, theirs = (committed(store, slot, layer) for store in stores)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_forward_never_runs_committed_tokens_again(subject: Subject, monkeypatch: Any) -> None:
    made = engine(subject)
    sizes: list[int] = []
    body = type(made.denoiser).body

    def spy(self: Any, tokens: Any, *rest: Any) -> Any:
        sizes.append(tokens.shape[1])
        return body(self, tokens, *rest)

    monkeypatch.setattr(type(made.denoiser), "body", spy)
    made.generate(request(prompt(BLOCK), 24, "no editing"))
    assert max(sizes) <= 2 * BLOCK
