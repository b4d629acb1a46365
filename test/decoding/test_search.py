# Search within a block: greedy where nothing is compared, the best of all trajectories where everything is.
# Entry points: the tests.
# The toys are tables of random logits by the block's tokens, so every order of every text can be tried.
"""Policies order_token and info_gain."""

from __future__ import annotations

import math
from collections.abc import Generator
from functools import cache
from typing import Any

import pytest
import torch
from decoding import checks
from decoding.reference import scripted
from decoding.subjects import BLOCK, POLICIES, Subject, decoded, engine, opened, prompt, request
from torch import Tensor

from hildanext.config.decode import DecodeConfig, PolicySection
from hildanext.core.types import Canvas
from hildanext.decoding import search
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.policies import order_token
from hildanext.decoding.policies.info_gain import InfoGain
from hildanext.decoding.policies.order_token import OrderToken
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError

WORDS, PLACES, MASK = 4, 3, 4


@pytest.fixture(scope="module")
def subject(random_model: Any) -> Subject:
    return opened(random_model, "qwen3")


def ask(length: int, new: int, policy: Any, sampling: str = "greedy", **fields: Any) -> Request:
    """A request for a policy that is in no table."""
    asked = request(prompt(length), new, "static_quota", sampling, **fields)
    return asked.model_copy(update={"policy": PolicySection.model_validate(policy)})


def table(seed: int) -> Any:
    """log p [PLACES][WORDS] of a state of the block, by its tokens."""

    @cache
    def of(state: tuple[int, ...]) -> list[list[float]]:
        number = sum(token * 5**place for place, token in enumerate(state))
        drawn = torch.randn(PLACES, WORDS, generator=torch.Generator().manual_seed(seed * 1000 + number)).double()
        rows: list[list[float]] = drawn.mul(1.5).log_softmax(dim=1).tolist()
        return rows

    return of


def run(policy: Any, toy: Any, tokens: tuple[int, ...] = (MASK,) * PLACES) -> tuple[tuple[int, ...], list[int]]:
    """The tokens of a search over a toy, and how many candidates each forward had."""
    here, asked = torch.tensor(tokens), list[int]()
    canvas = Canvas(here, torch.ones(PLACES, dtype=torch.bool), MASK, 0, tokens.count(MASK))
    course: Generator[Tensor, Tensor, Tensor] = policy.search(canvas, lambda step, number: uniforms(step, number))
    states = next(course)
    while True:
        asked.append(len(states))
        rows = [toy(tuple(state)) for state in states.tolist()]
        logits = torch.full((len(rows), PLACES, WORDS + 1), -math.inf, dtype=torch.float64)
        logits[:, :, :WORDS] = torch.tensor(rows, dtype=torch.float64)
        try:
            states = course.send(logits)
        except StopIteration as end:
            return tuple(end.value.tolist()), asked


def uniforms(step: int, number: int) -> Tensor:
    return torch.rand(PLACES, generator=torch.Generator().manual_seed(100 * step + number), dtype=torch.float64)


def greedy(toy: Any) -> tuple[int, ...]:
    """The surest place and its likeliest word, one after the other."""
    state = [MASK] * PLACES
    while MASK in state:
        rows = toy(tuple(state))
        place = max((i for i in range(PLACES) if state[i] == MASK), key=lambda i: max(rows[i]))
        state[place] = max(range(WORDS), key=rows[place].__getitem__)
    return tuple(state)


def trajectories(toy: Any, state: tuple[int, ...] = (MASK,) * PLACES, score: float = 0.0) -> Any:
    """(score, text) of every order of every text: each word scored in the block completed by the guesses before it."""
    if MASK not in state:
        yield score, state
    rows = toy(state)
    guess = [max(range(WORDS), key=rows[i].__getitem__) if state[i] == MASK else state[i] for i in range(PLACES)]
    for place in (i for i in range(PLACES) if state[i] == MASK):
        seen = tuple(MASK if i == place else guess[i] for i in range(PLACES))
        for word in range(WORDS):
            after = tuple(word if i == place else state[i] for i in range(PLACES))
            yield from trajectories(toy, after, score + toy(seen)[place][word])


WIDE = {"beams": 4096, "children": 4096, "width": WORDS}


def test_a_single_beam_is_greedy_and_scores_nothing() -> None:
    for seed in range(20):
        for policy in (OrderToken(beams=1), InfoGain(candidates=1, bypass=1.0)):
            text, asked = run(policy, table(seed))
            assert text == greedy(table(seed)) and asked == [1] * PLACES


def check_the_argmax(seeds: int) -> None:
    differs = 0
    for seed in range(seeds):
        best = max(trajectories(table(seed)))
        text, _ = run(OrderToken(**WIDE), table(seed))
        assert text == best[1], seed
        differs += text != greedy(table(seed))
    assert differs > 2


def test_a_beam_that_holds_everything_finds_the_best_of_all_trajectories() -> None:
    check_the_argmax(8)


def gain(toy: Any, state: tuple[int, ...], places: tuple[int, ...]) -> float:
    """The drop of mean entropy minus the entropies filled, by hand."""
    rows = toy(state)
    spread = [-sum(math.exp(p) * p for p in row) for row in rows]
    after = tuple(max(range(WORDS), key=rows[i].__getitem__) if i in places else state[i] for i in range(PLACES))
    left = [i for i in range(PLACES) if after[i] == MASK]
    later = [-sum(math.exp(p) * p for p in row) for row in toy(after)]
    hidden = [i for i in range(PLACES) if state[i] == MASK]
    mean = sum(later[i] for i in left) / len(left) if left else 0.0
    return sum(spread[i] for i in hidden) / len(hidden) - mean - sum(spread[i] for i in places)


def test_the_set_of_the_largest_gain_is_filled() -> None:
    chosen = 0
    for seed in range(12):
        toy, state = table(seed), (MASK,) * PLACES
        while state.count(MASK) > 1:
            best = max((i for i in range(PLACES) if state[i] == MASK), key=lambda i: gain(toy, state, (i,)))
            rows = toy(state)
            state = tuple(max(range(WORDS), key=rows[i].__getitem__) if i == best else state[i] for i in range(PLACES))
        rows = toy(state)
        wanted = tuple(
            max(range(WORDS), key=rows[i].__getitem__) if state[i] == MASK else state[i] for i in range(PLACES)
        )
        # with so hot a draw of positions, every place is among 64 candidates
        text, asked = run(InfoGain(candidates=64, bypass=1.0, position_temperature=50.0), toy)
        assert text == wanted and asked == [1, 3, 2]
        chosen += text != greedy(toy)
    assert chosen > 2


def test_sure_masks_are_filled_without_comparing() -> None:
    text, asked = run(InfoGain(bypass=0.0), table(1))
    rows = table(1)((MASK,) * PLACES)
    assert text == tuple(max(range(WORDS), key=row.__getitem__) for row in rows) and asked == [1]


@pytest.mark.parametrize(
    "policy", [{"type": "order_token", "steps": 3}, {"type": "info_gain", "steps": 3, "bypass": 0.2}]
)
def test_caching_batching_and_preemption_change_nothing(subject: Subject, policy: dict[str, Any]) -> None:
    for sampling in ("greedy", "guided"):
        asked = ask(5, 12, policy, sampling)
        plain = decoded(subject, asked)
        for settings in ({"cache": False}, {"fuse": False}):
            assert decoded(subject, asked, **settings).token_ids == plain.token_ids
    others = [request(prompt(9), 9, "editing"), asked, request(prompt(3), 9, "no editing")]
    made = engine(subject)
    for one in others:
        made.submit(one)
    done, steps = dict[int, Any](), 0
    while made.pending:
        found = made.step()
        done |= {event.request: event.result for event in found if event.kind == "done"}
        steps += 1
        if steps in (4, 9):
            made.preempt(1)
    for number, one in enumerate(others):
        assert done[number].token_ids == decoded(subject, one).token_ids


def test_the_store_holds_the_final_text_and_nothing_of_a_candidate(subject: Subject, monkeypatch: Any) -> None:
    monkeypatch.setitem(POLICIES, "searching", {"type": "order_token", "steps": 2, "beams": 2, "children": 2})
    checks.committed_keys_are_those_of_one_forward(subject, "searching", "greedy")


def test_greedy_search_is_the_static_quota_in_the_engine(subject: Subject) -> None:
    for steps in (0, 3):
        plain = ask(6, 15, {"type": "static_quota", "steps": steps})
        for kind in ({"type": "order_token", "beams": 1}, {"type": "info_gain", "candidates": 1, "bypass": 1.0}):
            asked = ask(6, 15, {**kind, "steps": steps})
            assert decoded(subject, asked).token_ids == decoded(subject, plain).token_ids


def test_counts_and_the_trace_tell_what_ran(subject: Subject) -> None:
    policy = {"type": "order_token", "steps": 2, "beams": 2, "children": 2}
    result = decoded(subject, ask(BLOCK, BLOCK, policy, trace=True))
    # the prompt, then per step one forward for the beams (one or two in the second) and one for their children
    assert result.metrics.forwards == 1 + 4 and result.metrics.positions in (
        (1 + 2 + 1 + 2) * BLOCK,
        (1 + 2 + 2 + 4) * BLOCK,
    )
    assert [token["state"] for token in result.trace[0]["tokens"]] == ["new"] * BLOCK


def test_what_excludes_a_search_is_refused() -> None:
    made = BlockEngine(scripted(lambda *_: {1: 0.9}), DecodeConfig(block=BLOCK))
    with pytest.raises(DecodeError, match="a search is within one block"):
        made.submit(Request.of(prompt_ids=(1, 2), policy={"type": "order_token", "window_blocks": 2}))


def test_planted_faults_are_seen(subject: Subject, monkeypatch: Any) -> None:
    best = OrderToken._best

    def unmasked(self: Any, children: Any, logs: Any) -> Any:
        return best(self, [order_token._Child(c.before, c.tokens, c.new | True, c.whole) for c in children], logs)

    with monkeypatch.context() as patch:
        patch.setattr(OrderToken, "_best", unmasked)
        with pytest.raises(AssertionError):
            check_the_argmax(8)
    with monkeypatch.context() as patch:
        patch.setattr(InfoGain, "_chosen", lambda self, sets, *_: len(sets) - 1)
        with pytest.raises(AssertionError):
            test_the_set_of_the_largest_gain_is_filled()
    update = search.Fork.update
    with monkeypatch.context() as patch:
        patch.setattr(
            search.Fork, "update", lambda self, *given, **more: update(search.Fork(self.store, self.slot, 0), *given)
        )
        with pytest.raises((AssertionError, RuntimeError)):
            test_caching_batching_and_preemption_change_nothing(subject, {"type": "order_token", "steps": 3})
