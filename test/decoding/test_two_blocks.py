# Two blocks opened at once, by a rule of these tests: the engine is as exact as with one.
# Entry points: the tests; what they check is in checks. When to open a block is not decided here.
# Rows of a forward are then final blocks, and two opened ones of which the second sees the first as it is.
"""Several opened blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from decoding import checks, plants
from decoding.reference import two_open
from decoding.subjects import BLOCK, Subject, decoded, engine, opened, prompt, request
from decoding.sums import summing

from hildanext.decoding import engine as module
from hildanext.decoding.driver import Driver
from hildanext.decoding.events import Commit, Done, Draft
from hildanext.decoding.state import RequestCanvas

CASES = [
    ("no editing", "greedy"), ("editing", "greedy"), ("editing", "sampled"), ("static_quota", "greedy"),
    ("static_quota", "sampled"), ("edit freely", "guided sampled"), ("remask", "greedy"), ("credit", "greedy"),
]  # fmt: skip


@pytest.fixture(scope="module", params=["qwen3", "sums"])
def subject(request: Any, random_model: Any) -> Subject:
    return summing(True) if request.param == "sums" else opened(random_model, request.param)


@pytest.fixture(autouse=True)
def two_at_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "RequestCanvas", partial(RequestCanvas, opens=two_open))


@pytest.mark.parametrize(("policy", "sampling"), CASES)
def test_every_way_of_caching_gives_the_same_tokens(subject: Subject, policy: str, sampling: str) -> None:
    checks.every_way_of_caching_agrees(subject, policy, sampling, (1, 2 * BLOCK + 3))


@pytest.mark.parametrize(("seed", "preempt", "settings"), [(1, 0.0, {}), (4, 0.0, {"fuse": False}), (10, 0.3, {})])
def test_company_and_preemption_change_nothing(
    subject: Subject, seed: int, preempt: float, settings: dict[str, Any]
) -> None:
    checks.company_changes_nothing(subject, seed, preempt, **settings)


@pytest.mark.parametrize(("policy", "sampling"), CASES[:5])
def test_committed_keys_are_those_of_one_forward(random_model: Any, policy: str, sampling: str) -> None:
    checks.committed_keys_are_those_of_one_forward(opened(random_model, "llama"), policy, sampling)


def test_a_draft_carries_both_blocks_and_text_is_committed_in_order(subject: Subject) -> None:
    events = list(Driver(engine(subject)).stream(request(prompt(BLOCK), 3 * BLOCK, "editing", trace=True)))
    drafts = [event for event in events if isinstance(event, Draft)]
    assert len(drafts[0].tokens) == 2 * BLOCK
    for draft in drafts:
        places = [token.pos for token in draft.tokens]
        assert places == list(range(places[0], places[0] + len(places)))
    assert isinstance(events[-1], Done)
    committed = [token for event in events if isinstance(event, Commit) for token in event.token_ids]
    assert tuple(committed) == events[-1].result.token_ids
    assert len(drafts) == events[-1].result.metrics.steps == len(events[-1].result.trace)


def test_two_at_once_take_fewer_forwards(subject: Subject, monkeypatch: Any) -> None:
    asked = request(prompt(BLOCK), 4 * BLOCK, "static_quota")
    both = decoded(subject, asked).metrics.forwards
    monkeypatch.undo()
    assert both < decoded(subject, asked).metrics.forwards


def test_keys_of_a_changing_forward_are_noticed(random_model: Any, monkeypatch: Any) -> None:
    plants.keys_of_the_changing_forward(monkeypatch)
    with pytest.raises(AssertionError):
        checks.committed_keys_are_those_of_one_forward(opened(random_model, "qwen3"), "no editing", "greedy")
