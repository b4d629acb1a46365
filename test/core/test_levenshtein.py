# Edit labels: rounds of them reach the target from any draft, matches are as many as can be, and the report's example.
# Entry points: pytest. The longest common subsequence is found once more by trying every subset.
# [MASK] counts as a match of anything; without that, half of the drafts would never end.
"""Tests of core/levenshtein.py."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import pytest

from hildanext.core import levenshtein
from hildanext.core.levenshtein import Controls, apply, labels, moved

DELETE, INSERT, MASK = 100, 101, 99
IDS = Controls(DELETE, INSERT, MASK)
ROUNDS = 10


def pairs(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Drafts and targets of 4, 8 or 16 tokens: unrelated ones, and damaged copies."""
    source, made = random.Random(seed), []
    for index in range(count):
        size, words = source.choice((4, 8, 16)), source.choice((3, 6, 20))
        target = [source.randrange(words) for _ in range(size)]
        draft = [source.choice((MASK, *range(words))) for _ in range(size)]
        if index % 2:
            draft = [one for one in target if source.random() > 0.1] + [MASK] * size
            draft.insert(source.randrange(size), source.randrange(words))
        made.append((draft[:size], target))
    return made


def rounds(draft: list[int], target: list[int]) -> int:
    """Rounds of labels until the draft is the target; ROUNDS where it is not by then."""
    for count in range(ROUNDS):
        if draft == target:
            return count
        draft = apply(draft, labels(draft, target, IDS), IDS)
        assert len(draft) == len(target)
    return ROUNDS


def never_ending(count: int = 600) -> int:
    """Pairs whose rounds do not end."""
    return sum(rounds(*pair) == ROUNDS for pair in pairs(count))


def matches(draft: list[int], target: list[int]) -> int:
    """The size of the longest common subsequence, [MASK] matching anything, by trying all."""
    for size in range(len(draft), 0, -1):
        for places in combinations(range(len(draft)), size):
            for others in combinations(range(len(target)), size):
                if all(draft[i] in (MASK, target[j]) for i, j in zip(places, others, strict=True)):
                    return size
    return 0


def kept(draft: list[int], target: list[int]) -> int:
    """Positions whose label keeps the token, with or without a mask before it."""
    return sum(own in (token, INSERT) for token, own in zip(draft, labels(draft, target, IDS), strict=True))


def test_rounds_of_labels_reach_every_target() -> None:
    assert never_ending() == 0
    assert rounds(*pairs(1)[0]) > 0 and rounds([1, 2, 3, 4], [1, 2, 3, 4]) == 0


def test_as_many_tokens_are_kept_as_can_be() -> None:
    source = random.Random(1)
    for _ in range(60):
        draft, target = ([source.randrange(3) for _ in range(5)] for _ in range(2))
        assert kept(draft, target) == matches(draft, target)


def test_the_reports_example() -> None:
    target, before = "No man ever step in the same river twice", "No man step step in the the river twice"
    words = {word: index for index, word in enumerate(target.split())}
    draft = [words[word] for word in before.split()]
    made = labels(draft, list(range(9)), IDS)
    assert made == [0, 1, 2, 3, 4, DELETE, 5, INSERT, 8]
    after = apply(draft, made, IDS)
    assert after == [0, 1, 2, 3, 4, 5, MASK, 7, 8]
    assert labels(after, list(range(9)), IDS) == list(range(9))


def test_actions_by_hand() -> None:
    assert apply([1, 2, 3, 4], [1, DELETE, 7, 4], IDS) == [1, 7, 4, MASK]
    assert apply([1, 2, 3, 4], [1, INSERT, 3, 4], IDS) == [1, MASK, 2, 3]
    assert apply([1, 2, MASK, 4], [DELETE, INSERT, 3, DELETE], IDS) == [MASK, 2, 3, MASK]
    assert moved([DELETE, INSERT, 3, DELETE], IDS) == [-1, 1, 2, -1]
    assert labels([MASK] * 4, [5, 6, 7, 8], IDS) == [5, 6, 7, 8]
    assert labels([1, 1, 1], [2, 2, 2], IDS) == [DELETE] * 3
    assert labels([1, 9, 2], [1, 2, 3], IDS) == [1, DELETE, 2]
    assert labels([1, 3, 4], [1, 2, 3], IDS) == [1, INSERT, DELETE]


def test_planted_faults_are_seen(monkeypatch: Any) -> None:
    anchors = levenshtein._anchors
    for wrong in (
        lambda draft, target, mask: anchors(draft, target, -1),
        lambda draft, target, mask: anchors(draft, target, mask)[:-1],
    ):
        monkeypatch.setattr(levenshtein, "_anchors", wrong)
        with pytest.raises(AssertionError):
            test_rounds_of_labels_reach_every_target()
            test_the_reports_example()
