# Commits of another engine's tokens add up to its result, also where a stop string spans two replies.
# Entry points: pytest.
# Every token is a letter, so that ids and text can be counted against each other.
"""Relay."""

from __future__ import annotations

import pytest
from decoding.subjects import LETTERS, Letters

from hildanext.decoding.events import Commit, Done
from hildanext.decoding.prompt import Bounds
from hildanext.decoding.request import Request
from hildanext.engines.relay import Relay


@pytest.mark.parametrize(
    ("stop", "kept", "reason"), [("cd", "ab", "stop"), ("cx", "abcdef", "length"), ("fg", "abcdef", "length")]
)
def test_committed_ids_are_those_of_the_result_and_belong_to_their_text(stop: str, kept: str, reason: str) -> None:
    request = Request.of(prompt_ids=(1,), stop=(stop,), ignore_eos=True)
    relay = Relay(0, request, Letters(), Bounds(8, 0, 6, -1), "any", {})
    ids = [LETTERS.index(letter) for letter in "abcdef"]
    events = [event for count in (3, 5, 6) for event in ([] if relay.over else relay.push(ids[:count], False))]
    commits, done = [event for event in events if isinstance(event, Commit)], events[-1]
    assert isinstance(done, Done) and (done.result.text, done.result.finish_reason) == (kept, reason)
    assert tuple(token for event in commits for token in event.token_ids) == done.result.token_ids
    assert all("".join(LETTERS[token] for token in event.token_ids) == event.text for event in commits)
