# What sharing finished blocks promises, as functions that raise AssertionError where a promise is broken.
# Entry points: prefixes_change_nothing, memory_is_bounded, asked_with_common_beginnings.
# The texts of requests that begin alike are compared with those of engines that share nothing.
"""Checks of the prefix cache."""

from __future__ import annotations

import random
from typing import Any

from decoding import checks
from decoding.reference import MASK
from decoding.subjects import BLOCK, WINDOWS, Subject, decoded, engine, prompt, request

from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Done
from hildanext.decoding.request import Request

HEADS = (prompt(BLOCK, 1), prompt(BLOCK, 2))
BODY = prompt(3 * BLOCK + 2, 3)
WAYS = (
    ("no editing", "greedy"), ("editing", "sampled"), ("edit freely", "guided"), ("remask", "guided sampled"),
    ("static_quota", "nucleus"),
)  # fmt: skip


def asked_with_common_beginnings(count: int, seed: int) -> list[Request]:
    """Two first blocks that differ before the same body, cut at random places; two block sizes, windows of 1 to 4."""
    source, made = random.Random(seed), []
    for index in range(count):
        ids = (*source.choice(HEADS), *BODY)[: source.randrange(BLOCK + 3, BLOCK + len(BODY))]
        tail = tuple(source.randrange(MASK) for _ in range(source.randrange(5)))
        policy, sampling = WAYS[index % len(WAYS)]
        fields = {"block": source.choice([BLOCK, BLOCK, BLOCK // 2]), **WINDOWS[1 + index % len(WINDOWS)]}
        made.append(request((*ids, *tail), source.randrange(4, 14), policy, sampling, **fields))
    return made


def watched(made: BlockEngine, source: random.Random, evict: float) -> list[int]:
    """Evict a run at random before a share of the steps; the list fills with the cached tokens of what is done."""
    step, cached = made.step, list[int]()

    def stepped() -> Any:
        tree = made.sharing.tree
        ends = [run for run in tree.runs if not run.below]
        if ends and source.random() < evict:
            tree.evict(source.choice(ends))
        events = step()
        cached.extend(event.result.metrics.cached_tokens or 0 for event in events if isinstance(event, Done))
        return events

    made.step = stepped  # type: ignore[method-assign]
    return cached


def prefixes_change_nothing(
    subject: Subject, seed: int, evict: float = 0.0, preempt: float = 0.0, **settings: Any
) -> None:
    """Texts with shared blocks = texts of engines that share nothing, and something was shared."""
    asked = asked_with_common_beginnings(8, seed)
    wanted = [checks.answer(decoded(subject, one, prefix_bytes=0)) for one in asked]
    made, source = engine(subject, requests=3, **settings), random.Random(seed)
    cached = watched(made, source, evict)
    assert checks.mixed(made, asked, source, preempt) == wanted, seed
    assert sum(cached) > 0
    assert not any(run.users for run in made.sharing.tree.runs) and not made.sharing.ends


def memory_is_bounded(subject: Subject, kv_bytes: int) -> None:
    """Slots and tree together stay within decode.kv_bytes at every step, the tree within prefix_bytes, and its bytes
    are those of its runs."""
    made = engine(subject, requests=2, kv_bytes=kv_bytes, prefix_bytes=kv_bytes // 2)
    tree, most = made.sharing.tree, 0
    for one in asked_with_common_beginnings(8, 5):
        made.submit(one)
    while made.pending:
        made.step()
        held = sum(run.kept.bytes for run in tree.runs)
        assert tree.bytes == held <= kv_bytes // 2 and made.store.bytes() + held <= kv_bytes
        most = max(most, held)
    assert most > 0
