# Many requests per forward: no request's text depends on the others, and leaving early frees its room at once.
# Entry points: the tests; what they check is in checks.
# Requests of different lengths, policies, samplings, block sizes, seeds and stop strings join and leave at random.
"""Continuous batching."""

from __future__ import annotations

from typing import Any

import pytest
from decoding import checks
from decoding.reference import loaded
from decoding.subjects import Subject, engine, opened

from hildanext.config.decode import DecodeConfig
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Commit, Done
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError

SETTINGS: tuple[dict[str, Any], ...] = (
    {}, {"requests": 3}, {"step_tokens": 64}, {"cache": False}, {"fuse": False}, {"kv_bytes": 60_000}
)  # fmt: skip


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def subject(request: Any, random_model: Any) -> Subject:
    return opened(random_model, request.param, seed=3)


@pytest.fixture(scope="module")
def parts(random_model: Any) -> Any:
    return loaded(random_model("llama", seed=3))


@pytest.mark.parametrize("seed", range(len(SETTINGS)))
def test_requests_that_join_and_leave_at_random_get_the_text_they_get_alone(subject: Subject, seed: int) -> None:
    checks.company_changes_nothing(subject, seed, **SETTINGS[seed])


@pytest.mark.parametrize("seed", [10, 11, 12])
def test_preempted_requests_resume_with_the_same_text(subject: Subject, seed: int) -> None:
    checks.company_changes_nothing(subject, seed, preempt=0.3, requests=(8, 4, 2)[seed % 3], fuse=seed != 12)


def test_cancel_frees_keys_and_values_at_once_and_leaves_the_others_alone(subject: Subject) -> None:
    checks.cancel_frees_at_once(subject)


def test_no_more_requests_run_than_the_limits_allow(parts: Any) -> None:
    made = BlockEngine(parts, DecodeConfig(block=8, requests=2))
    for _ in range(3):
        made.submit(Request.of(prompt_ids=(5,) * 8, max_new_tokens=24, ignore_eos=True))
    made.step()
    assert len(made.running) == 2
    positions = 2 * 2 * 2 * 8 * 4
    small = BlockEngine(parts, DecodeConfig(block=8, kv_bytes=positions * 64))
    for _ in range(3):
        small.submit(Request.of(prompt_ids=(5,) * 8, max_new_tokens=24, ignore_eos=True))
    while small.pending:
        assert len(small.running) <= 2 and small.store.bytes() <= positions * 64
        small.step()


def test_a_request_that_can_never_fit_is_refused_when_it_is_submitted(parts: Any) -> None:
    made = BlockEngine(parts, DecodeConfig(block=8, kv_bytes=50_000))
    with pytest.raises(DecodeError, match="kv_bytes"):
        made.submit(Request.of(prompt_ids=(5,) * 8, max_new_tokens=240))
    with pytest.raises(DecodeError, match="is 256 tokens"):
        BlockEngine(parts, DecodeConfig()).submit(Request.of(prompt_ids=(5,), max_new_tokens=256))


def test_two_streams_of_one_engine_interleave_and_closing_one_cancels_it(subject: Subject) -> None:
    asked = [Request.of(prompt_ids=(7, 9, 11), max_new_tokens=20, ignore_eos=True, seed=s) for s in (1, 2)]
    wanted = checks.alone(subject, asked)
    made = engine(subject)
    first, second = map(Driver(made).stream, asked)
    next(first), next(second)
    tokens = [token for event in second if isinstance(event, Commit) for token in event.token_ids]
    assert tuple(tokens) == wanted[1][0]
    first.close()
    assert made.pending == 0 and made.store.lengths == [] and made.step() == []


def test_a_stream_that_others_finish_still_gets_all_its_events(subject: Subject) -> None:
    checks.streams_keep_their_events(subject)


def test_the_store_grows_without_losing_what_it_holds(subject: Subject) -> None:
    made = engine(subject)
    asked = [Request.of(prompt_ids=(5,) * size, max_new_tokens=16, ignore_eos=True) for size in (3, 60, 150)]
    wanted = checks.alone(subject, asked)
    results = {}
    for request in asked:
        made.submit(request)
        made.step()
    while made.pending:
        results.update({e.request: checks.answer(e.result) for e in made.step() if isinstance(e, Done)})
    assert [results[number] for number in sorted(results)] == wanted
