# What exact decoding promises, as functions that raise AssertionError where a promise is broken.
# Entry points: every function; the tests run them as they are and, with an error planted in the engine, see them fail.
# They are told the subject only, and choose prompts and requests from fixed seeds.
"""Checks of the decoder's invariants."""

from __future__ import annotations

import random
from typing import Any

import torch
from decoding.oracle import mask
from decoding.reference import MASK, committed
from decoding.subjects import (
    BLOCK,
    POLICIES,
    WINDOWS,
    Subject,
    decoded,
    engine,
    expected,
    expected_in_window,
    prompt,
    request,
)  # fmt: skip

from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Commit, Done
from hildanext.decoding.request import Request, Result

WAYS: dict[str, dict[str, Any]] = {
    "uncached": {"cache": False}, "separate commit": {"fuse": False}, "prefill in single blocks": {"step_tokens": BLOCK}
}  # fmt: skip
LENGTHS = range(2 * BLOCK + 2)


def every_way_of_caching_agrees(
    subject: Subject, policy: str, sampling: str, lengths: Any = LENGTHS, **fields: Any
) -> None:
    """Cached = uncached = separate commit = prefill block by block: tokens, steps and edits, at every prompt length."""
    for length in lengths:
        asked = request(prompt(length), BLOCK + 3, policy, sampling, **fields)
        plain = decoded(subject, asked)
        assert MASK not in plain.token_ids and len(plain.token_ids) == asked.max_new_tokens
        for way, settings in WAYS.items():
            other = decoded(subject, asked, **settings)
            assert other.token_ids == plain.token_ids, (way, length)
            assert other.metrics.mask_share == plain.metrics.mask_share, (way, length)
            assert other.metrics.edits_applied == plain.metrics.edits_applied, (way, length)


def tokens_are_the_oracles(subject: Subject, policy: str, sampling: str) -> None:
    """Engine = independent decoder for prompts before, at and behind a block's end."""
    for length in (3, BLOCK, 2 * BLOCK + 1):
        asked = request(prompt(length, 1), 9, policy, sampling)
        assert list(decoded(subject, asked).token_ids) == expected(subject, asked), length


def windows_are_the_oracles(
    subject: Subject, policy: str, sampling: str, blocks: int, lengths: tuple[int, ...] = (3, BLOCK, 2 * BLOCK + 1)
) -> None:
    """Engine = independent decoder of windows for prompts before, at and behind a block's end, four blocks on."""
    for length in lengths:
        asked = request(prompt(length, blocks), 3 * BLOCK + 3, policy, sampling, **WINDOWS[blocks])
        assert list(decoded(subject, asked).token_ids) == expected_in_window(subject, asked), length


def committed_keys_are_those_of_one_forward(subject: Subject, policy: str, sampling: str, **fields: Any) -> None:
    """Keys and values of every committed block = those of one block-causal forward over the final text, to 1e-5."""
    made = engine(subject)
    made.submit(request(prompt(13), 30, policy, sampling, **fields))
    made.step()
    live = made.running[0]
    blocks = 0
    while made.pending:
        held = live.canvas.committed
        if live.slots and held > blocks:
            blocks = held
            with torch.no_grad():
                ids = live.canvas.tokens[None, :held]
                cache = subject.model(input_ids=ids, attention_mask=mask(held, BLOCK), use_cache=True).past_key_values
            for layer, wanted in enumerate(cache.layers):
                key, value = committed(made.store, live.slots[0], layer)
                torch.testing.assert_close(key, wanted.keys[0], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(value, wanted.values[0], atol=1e-5, rtol=1e-5)
        made.step()
    assert blocks >= 4 * BLOCK


def some_requests(count: int, seed: int, windows: tuple[int, ...] = ()) -> list[Request]:
    """Requests of every policy with random samplings, prompt lengths, block sizes, seeds, stop strings and, where
    `windows` names some, windows."""
    source = random.Random(seed)
    policies = source.sample(list(POLICIES), len(POLICIES))
    made = []
    for index in range(count):
        fields: dict[str, Any] = {
            "block": source.choice([4, 8, 8, 16]), "seed": source.randrange(100), "sample": source.randrange(3),
            "temperature": source.choice([0.0, 0.0, 0.7, 1.2]), "top_k": source.choice([0, 0, 12]),
            "top_p": source.choice([1.0, 1.0, 0.9]), "cfg_scale": source.choice([0.0, 0.0, 0.0, 0.6]),
            "stop": source.choice([(), (), ("a",), ("B", "k")]),
        }  # fmt: skip
        fields |= WINDOWS[windows[index % len(windows)]] if windows else {}
        ids = tuple(source.randrange(MASK) for _ in range(source.randrange(1, 40)))
        made.append(request(ids, source.randrange(1, 24), policies[index % len(policies)], **fields))
    return made


Answer = tuple[tuple[int, ...], str, str]


def answer(result: Result) -> Answer:
    """What a user sees of a result."""
    return result.token_ids, result.text, result.finish_reason


def mixed(made: BlockEngine, asked: list[Request], source: random.Random, preempt: float = 0.0) -> list[Answer]:
    """The answers when requests join at random moments and are preempted with a probability per step. Everything they
    emit must add up to their results, and an engine that is done holds nothing."""
    order: dict[int, int] = {}
    todo, results, texts = list(enumerate(asked)), dict[int, Answer](), dict.fromkeys(range(len(asked)), "")
    while todo or made.pending:
        while todo and source.random() < 0.4:
            index, one = todo.pop(0)
            order[made.submit(one, drafts=source.random() < 0.2)] = index
        if made.running and source.random() < preempt:
            made.preempt(source.choice(made.running).number)
        for event in made.step():
            if isinstance(event, Commit):
                texts[order[event.request]] += event.text
            elif isinstance(event, Done):
                results[order[event.request]] = answer(event.result)
    assert [texts[index] for index in sorted(texts)] == [results[index][1] for index in sorted(results)]
    assert made.store.lengths == [] and made.store.bytes() == 0
    return [results[index] for index in range(len(asked))]


def alone(subject: Subject, asked: list[Request]) -> list[Answer]:
    """The answers of each request in an engine of its own."""
    return [answer(decoded(subject, one)) for one in asked]


def company_changes_nothing(
    subject: Subject, seed: int, preempt: float = 0.0, windows: tuple[int, ...] = (), **settings: Any
) -> None:
    """Batched = single, preempted = uninterrupted, while requests join and leave at random."""
    asked = some_requests(9, seed, windows)
    made = engine(subject, **settings)
    assert mixed(made, asked, random.Random(seed), preempt) == alone(subject, asked), seed


def cancel_frees_at_once(subject: Subject) -> None:
    """A cancelled request leaves slots, bytes and queue in the same call; the others keep their text, and what did not
    fit before is admitted by the next step."""
    asked = [one for one in some_requests(12, 2) if not one.stop][:3]
    wanted = alone(subject, asked)
    made = engine(subject, requests=4)
    numbers = [made.submit(one) for one in asked]
    large = request(prompt(20), 100, "static_quota", "guided")
    extra, late = made.submit(large), made.submit(asked[0])
    done: dict[int, Answer] = {}
    for _ in range(2):
        done |= {event.request: answer(event.result) for event in made.step() if isinstance(event, Done)}
    running, lengths = [live.number for live in made.running], len(made.store.lengths)
    assert extra in running and late not in running
    result = made.cancel(extra)
    assert result is not None and result.finish_reason == "cancelled"
    assert len(made.store.lengths) == lengths - 2 and extra not in [live.number for live in made.running]
    slots = sorted(slot for live in made.running for slot in live.slots)
    assert slots == list(range(len(made.store.lengths))) and made.cancel(extra) is None
    made.step()
    assert late in [live.number for live in made.running] or late in done
    while made.pending:
        done |= {event.request: answer(event.result) for event in made.step() if isinstance(event, Done)}
    assert [done[number] for number in (*numbers, late)] == [*wanted, wanted[0]] and extra not in done
    made.submit(large), made.step()
    assert made.store.bytes() > 0 and made.cancel(made.running[0].number) is not None
    assert made.store.bytes() == 0 and made.pending == 0


def forwards_are_bounded(subject: Subject, policy: str, sampling: str) -> None:
    """A mask is filled by every forward while there are any; a block takes at most as many forwards as it has masks,
    plus max_post_steps with editing; commits cost one forward per block, none when fused."""
    fields = POLICIES[policy]
    post = fields["max_post_steps"] if fields.get("tau_edit") is not None else 0
    for length in (3, BLOCK):
        asked = request(prompt(length, 2), 2 * BLOCK - length % BLOCK, policy, sampling, trace=True)
        fused, separate = decoded(subject, asked), decoded(subject, asked, fuse=False)
        blocks: dict[int, list[int]] = {}
        for step in fused.trace:
            left = sum(token["state"] == "mask" for token in step["tokens"])
            blocks.setdefault(step["start"], []).append(left)
        for start, left in blocks.items():
            masks = BLOCK - max(0, length - start)
            filling = [masks, *(count for count in left if count)]
            assert all(more > less for more, less in zip(filling, filling[1:], strict=False)), left
            assert left[-1] == 0 and len(left) <= masks + post, left
        assert fused.metrics.forwards == fused.metrics.steps
        extra = separate.metrics.forwards - separate.metrics.steps - (length >= BLOCK)
        assert 0 <= extra <= len(blocks) - 1 and (post or extra == len(blocks) - 1)


def streams_keep_their_events(subject: Subject) -> None:
    """Streams of one engine that are read one after the other, last first, each give all of their own text."""
    made, asked = Driver(engine(subject)), some_requests(6, 5)
    wanted = alone(subject, asked)
    streams = [made.stream(one) for one in asked]
    firsts = [[next(stream)] for stream in streams]
    found = []
    for events, stream in reversed(list(zip(firsts, streams, strict=True))):
        events += stream
        done = events[-1]
        assert isinstance(done, Done)
        assert "".join(event.text for event in events if isinstance(event, Commit)) == done.result.text
        found.append(answer(done.result))
    assert found[::-1] == wanted and made.pending == 0 and made.step() == []
