# The record of a generation: step, edits, log-probability of each token, recomputed from its trace by plain forwards.
# Entry points: pytest.
# What they are checked against is in check_records.
"""Records of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from decoding.check_records import logprobs, records_are_the_oracles
from decoding.reference import MASK
from decoding.subjects import BLOCK, LETTERS, Letters, Subject, decoded, engine, opened, prompt, request

from hildanext.decoding import record
from hildanext.decoding.events import Commit, Done
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError

FIELDS: dict[str, dict[str, Any]] = {
    "one block": {}, "two blocks": {"window_blocks": 2, "tau_add": 0.1, "tau_semi": 0.9},
    "four blocks": {"window_blocks": 4, "tau_add": 0.0, "tau_semi": 0.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def subject(random_model: Callable[..., Any]) -> Subject:
    return opened(random_model, "llama")


class Spelling(Letters):
    """Letters that also reads a text."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [LETTERS.index(letter) for letter in text if letter in LETTERS]}


@pytest.mark.parametrize(("policy", "sampling", "window"), [
    ("no editing", "greedy", "two blocks"), ("edit freely", "sampled", "two blocks"),
    ("penalised", "guided", "one block"), ("remask", "greedy", "four blocks"), ("credit", "nucleus", "one block"),
])  # fmt: skip
def test_step_edits_and_logprob_are_those_of_plain_forwards(
    subject: Subject, policy: str, sampling: str, window: str
) -> None:
    length = {"one block": 3, "two blocks": BLOCK, "four blocks": 2 * BLOCK + 1}[window]
    asked = request(prompt(length), 2 * BLOCK + 3, policy, sampling, trace=True, logprobs=0, **FIELDS[window])
    records_are_the_oracles(subject, asked)


def test_records_count_edits(subject: Subject) -> None:
    asked = request(prompt(5), 3 * BLOCK, "edit freely", "greedy", trace=True, logprobs=0)
    result = records_are_the_oracles(subject, asked, cache=False)
    rewritten = sum(one.edits for one in result.record or ())
    assert 0 < rewritten <= sum(result.metrics.edits_applied)


def test_alternatives_are_the_likeliest_in_order(subject: Subject) -> None:
    asked = request(prompt(5), BLOCK, "no editing", "sampled", trace=True, logprobs=3)
    result = records_are_the_oracles(subject, asked)
    record, canvas = result.record or (), [*prompt(5), *[MASK] * (BLOCK - 5)]
    assert all(len(one.top) == 3 for one in record)
    first = [(place, one) for place, one in enumerate(record, 5) if one.step == 1]
    assert first
    for place, one in first:
        wanted = logprobs(subject, canvas, place, 0.0, 5)
        order = sorted(range(len(wanted)), key=wanted.__getitem__, reverse=True)[:3]
        assert [other.id for other in one.top] == order and all(other.text == LETTERS[other.id] for other in one.top)
        assert [other.logprob for other in one.top] == pytest.approx([wanted[token] for token in order], abs=1e-4)


def test_asking_changes_no_text_and_not_asking_keeps_nothing(subject: Subject) -> None:
    for policy in ("editing", "remask", "credit", "entropy_bound"):
        plain = decoded(subject, request(prompt(4), 20, policy, "sampled", trace=True))
        asked = decoded(subject, request(prompt(4), 20, policy, "sampled", trace=True, logprobs=5))
        assert plain.token_ids == asked.token_ids and plain.metrics.mask_share == asked.metrics.mask_share
        assert plain.record is None and "logprob" not in plain.trace[0]["tokens"][-1]


def test_commits_carry_the_records_of_their_tokens_and_preemption_changes_none(subject: Subject) -> None:
    asked = request(prompt(6), 4 * BLOCK, "editing", "sampled", logprobs=1, window_blocks=2, tau_add=0.1)
    wanted = decoded(subject, asked).record
    made, source = engine(subject), random.Random(3)
    made.submit(asked)
    made.submit(request(prompt(9), 2 * BLOCK, "no editing"))
    found, result = [], None
    while made.pending:
        if made.running and source.random() < 0.4:
            made.preempt(made.running[0].number)
        for event in made.step():
            if isinstance(event, Commit) and event.request == 0:
                assert event.record is not None and [one.id for one in event.record] == list(event.token_ids)
                found += event.record
            elif isinstance(event, Done) and event.request == 0:
                result = event.result
            elif isinstance(event, Commit):
                assert event.record is None
    assert result is not None and tuple(found) == result.record and wanted is not None
    assert [(one.id, one.edits) for one in found] == [(one.id, one.edits) for one in wanted]
    for one, alone in zip(found, wanted, strict=True):
        assert one.logprob == pytest.approx(alone.logprob, abs=1e-4)


def test_of_a_text_with_gaps_given_tokens_have_no_step(subject: Subject) -> None:
    parts = type(subject.parts)(**{**vars(subject.parts), "tokenizer": Spelling()})
    asked = Request.of(prompt="abc<gap:4>de<gap:3>f", infill=True, logprobs=0, policy={"type": "static_quota"})
    result = engine(Subject(parts, subject.model)).generate(asked)
    assert result.record is not None and len(result.record) == len(result.token_ids) == 13
    given = [one.step == 0 and one.logprob is None and not one.top for one in result.record]
    assert given == [place not in (3, 4, 5, 6, 9, 10, 11) for place in range(13)]


def test_a_stop_string_cuts_the_record_with_the_text(subject: Subject) -> None:
    whole = decoded(subject, request(prompt(6), 20, "no editing"))
    stop = whole.text[9]
    result = decoded(subject, request(prompt(6), 20, "no editing", logprobs=0, stop=(stop,)))
    assert result.record is not None and "".join(one.text for one in result.record) == result.text
    assert result.finish_reason == "stop"


def test_a_prompt_that_is_known_already_changes_no_record(subject: Subject) -> None:
    asked = request(prompt(2 * BLOCK + 3), BLOCK, "editing", "sampled", logprobs=2)
    made = engine(subject)
    first, again = made.generate(asked), made.generate(asked)
    assert first.record and again.metrics.cached_tokens == 2 * BLOCK
    pairs = list(zip(first.record, again.record or (), strict=True))
    assert all((a.id, a.step, a.edits) == (b.id, b.step, b.edits) for a, b in pairs)
    assert [a.logprob for a, _ in pairs] == pytest.approx([b.logprob for _, b in pairs], abs=1e-4)


@pytest.mark.parametrize("value", [-1, 21, "x"])
def test_a_count_of_alternatives_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(DecodeError, match="logprobs"):
        Request.of(prompt="a", logprobs=value)


WRITE = record.Record.write


def late(patch: Any) -> None:
    def write(self: Any, start: int, seen: Any, looked: Any, tokens: Any, scores: Any, number: int) -> None:
        WRITE(self, start, seen, looked, tokens, scores, number + 1)

    patch.setattr(record.Record, "write", write)


def shifted(patch: Any) -> None:
    def write(self: Any, start: int, seen: Any, looked: Any, tokens: Any, scores: Any, number: int) -> None:
        WRITE(self, start, seen, looked, tokens, scores.roll(1, 0), number)

    patch.setattr(record.Record, "write", write)


@pytest.mark.parametrize("plant", [late, shifted])
def test_a_planted_error_is_noticed(subject: Subject, monkeypatch: Any, plant: Any) -> None:
    plant(monkeypatch)
    asked = request(prompt(3), 2 * BLOCK, "penalised", "greedy", trace=True, logprobs=0)
    with pytest.raises(AssertionError):
        records_are_the_oracles(subject, asked)
