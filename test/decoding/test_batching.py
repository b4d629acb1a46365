# Many requests per forward: no request's text depends on the others, and leaving early frees its room at once.
# Entry points: the tests.
# Requests of different lengths, policies, block sizes and seeds join and leave at random.
"""Continuous batching."""

from __future__ import annotations

import random
from typing import Any

import pytest
from decoding.reference import MASK, loaded

from hildanext.config.decode import DecodeConfig
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Commit, Done
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError

KINDS: tuple[dict[str, Any], ...] = (
    {"tau_mask": 0.15, "tau_edit": None},
    {"tau_mask": 0.12, "tau_edit": 0.1, "overrides": {"max_post_steps": 3}},
    {"tau_mask": 0.1, "tau_edit": None, "temperature": 1.0, "seed": 4},
    {"policy": {"type": "random", "steps": 3}, "seed": 8},
    {"tau_mask": 0.2, "tau_edit": None, "cfg_scale": 0.5},
    {"policy": {"type": "remask", "stride": 2}, "block": 4},
)


@pytest.fixture(scope="module")
def parts(random_model: Any) -> Any:
    return loaded(random_model("llama", seed=3))


def requests(count: int, seed: int) -> list[Request]:
    source = random.Random(seed)
    made = []
    for index in range(count):
        ids = tuple(source.randrange(3, MASK) for _ in range(source.randrange(1, 40)))
        kind = KINDS[index % len(KINDS)]
        made.append(Request.of(prompt_ids=ids, max_new_tokens=source.randrange(1, 24), ignore_eos=True, **kind))
    return made


def alone(parts: Any, asked: list[Request]) -> list[tuple[int, ...]]:
    return [BlockEngine(parts, DecodeConfig(block=8)).generate(request).token_ids for request in asked]


def run(engine: BlockEngine, asked: list[Request], source: random.Random, preempt: float = 0.0) -> dict[int, Any]:
    order = {}
    todo, results = list(enumerate(asked)), {}
    while todo or engine.pending:
        while todo and source.random() < 0.4:
            index, request = todo.pop(0)
            order[engine.submit(request)] = index
        if engine.running and source.random() < preempt:
            engine.preempt(source.choice(engine.running).number)
            assert engine.waiting[0].canvas.committed == 0
        for event in engine.step():
            if isinstance(event, Done):
                results[order[event.request]] = event.result
    return results


def test_requests_that_join_and_leave_at_random_get_the_text_they_get_alone(parts: Any) -> None:
    asked = requests(10, 0)
    wanted = alone(parts, asked)
    for seed, settings in enumerate(({}, {"requests": 3}, {"step_tokens": 64}, {"cache": False}, {"fuse": False})):
        engine = BlockEngine(parts, DecodeConfig(block=8, **settings))
        results = run(engine, asked, random.Random(seed))
        assert [results[i].token_ids for i in range(len(asked))] == wanted, settings


def test_preempted_requests_resume_with_the_same_text(parts: Any) -> None:
    asked = requests(8, 1)
    wanted = alone(parts, asked)
    engine = BlockEngine(parts, DecodeConfig(block=8, requests=4))
    results = run(engine, asked, random.Random(7), preempt=0.3)
    assert [results[i].token_ids for i in range(len(asked))] == wanted


def test_cancel_frees_keys_and_values_at_once_and_leaves_the_others_alone(parts: Any) -> None:
    asked = requests(3, 2)
    wanted = alone(parts, asked)
    engine = BlockEngine(parts, DecodeConfig(block=8))
    numbers = [engine.submit(request) for request in asked]
    extra = engine.submit(Request.of(prompt_ids=(5,) * 20, max_new_tokens=64, ignore_eos=True))
    for _ in range(3):
        engine.step()
    held = len(engine.store.lengths)
    result = engine.cancel(extra)
    assert result is not None and result.finish_reason == "cancelled"
    assert len(engine.store.lengths) == held - 1 and engine.pending == len(engine.running)
    done = {}
    while engine.pending:
        done.update({event.request: event.result.token_ids for event in engine.step() if isinstance(event, Done)})
    assert all(done.get(number, ids) == ids for number, ids in zip(numbers, wanted, strict=True))
    assert engine.store.lengths == [] and engine.cancel(extra) is None


def test_no_more_requests_run_than_the_limits_allow(parts: Any) -> None:
    engine = BlockEngine(parts, DecodeConfig(block=8, requests=2))
    for request in requests(5, 3)[:3]:
        engine.submit(request)
    engine.step()
    assert len(engine.running) <= 2
    positions = 2 * 2 * 2 * 8 * 4
    small = BlockEngine(parts, DecodeConfig(block=8, kv_bytes=positions * 64))
    for _ in range(3):
        small.submit(Request.of(prompt_ids=(5,) * 8, max_new_tokens=24, ignore_eos=True))
    small.step()
    assert len(small.running) == 2


def test_a_request_that_can_never_fit_is_refused_when_it_is_submitted(parts: Any) -> None:
    engine = BlockEngine(parts, DecodeConfig(block=8, kv_bytes=50_000))
    with pytest.raises(DecodeError, match="kv_bytes"):
        engine.submit(Request.of(prompt_ids=(5,) * 8, max_new_tokens=240))
    with pytest.raises(DecodeError, match="window of 256"):
        BlockEngine(parts, DecodeConfig()).submit(Request.of(prompt_ids=(5,), max_new_tokens=256))


def test_two_streams_of_one_engine_interleave_and_closing_one_cancels_it(parts: Any) -> None:
    asked = [Request.of(prompt_ids=(7, 9, 11), max_new_tokens=20, ignore_eos=True, seed=s) for s in (1, 2)]
    wanted = alone(parts, asked)
    engine = BlockEngine(parts, DecodeConfig(block=8))
    first, second = engine.stream(asked[0]), engine.stream(asked[1])
    next(first), next(second)
    tokens = [token for event in second if isinstance(event, Commit) for token in event.token_ids]
    assert tuple(tokens) == wanted[1]
    first.close()
    assert engine.pending == 0 and engine.store.lengths == []


def test_the_store_grows_without_losing_what_it_holds(parts: Any) -> None:
    engine = BlockEngine(parts, DecodeConfig(block=8))
    asked = [Request.of(prompt_ids=(5,) * size, max_new_tokens=16, ignore_eos=True) for size in (3, 60, 150)]
    wanted = alone(parts, asked)
    results = {}
    for request in asked:
        engine.submit(request)
        engine.step()
    while engine.pending:
        results.update({event.request: event.result.token_ids for event in engine.step() if isinstance(event, Done)})
    assert [results[number] for number in sorted(results)] == wanted
