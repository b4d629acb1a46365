# What every policy keeps: it fills at least one mask, touches nothing given, is a function of its arguments, and ends.
# Entry points: pytest. A new policy is found by its file; an oracle of its tokens (test/decoding/oracle.py) is its
# author's choice.
# Probabilities are random numbers, so no model takes part.
"""Contract of the policies."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, fill, masked
from hildanext.registry import build, names

MASK, SIZE = 9, 8


def canvas(tokens: list[int], step: int, given: int, masks: int, history: tuple[Any, ...]) -> Canvas:
    """A block of eight tokens, the first `given` of them fixed."""
    uniform = torch.rand(SIZE, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return Canvas(torch.tensor(tokens), torch.arange(SIZE) >= given, MASK, step, masks, uniform, history)


def stats(source: random.Random) -> Stats:
    """Random statistics, every optional one included."""
    best = torch.tensor([source.randrange(0, MASK) for _ in range(SIZE)])
    values = torch.tensor([[source.random() for _ in range(SIZE)] for _ in range(3)])
    ranked = torch.stack([(best + shift) % MASK for shift in range(4)], dim=1)
    return Stats(
        best, values[0], values[1], values[2] / 2, ranked, values[0, :, None] * torch.tensor([1, 0.5, 0.2, 0.1])
    )


def broken_promises(policy: Any, source: random.Random) -> list[str]:
    """What is wrong with a policy over one block, decided from masks to the end."""
    given = source.randrange(0, 4)
    tokens = [source.randrange(0, MASK) for _ in range(given)] + [MASK] * (SIZE - given)
    made, step, history = tokens, 0, ()
    while MASK in made:
        now, found = canvas(made, step, given, SIZE - given, history), stats(source)
        before = now.tokens.clone()
        update, again = policy.step(found, now), policy.step(found, now)
        if not torch.equal(before, now.tokens):
            return ["it writes to its canvas"]
        if not torch.equal(again.tokens, update.tokens):
            return ["it is no function of its arguments"]
        if not bool((update.unmasked & (before == MASK)).any()):
            return ["it fills no mask"]
        if bool((update.unmasked & (before != MASK)).any() or (update.edited & (before == MASK)).any()):
            return ["it confuses masks and visible tokens"]
        if update.tokens[:given].tolist() != tokens[:given]:
            return ["it changes what is given"]
        history = (*history, (found.best, found.probability)) if policy.remembers else ()
        made, step = update.tokens.tolist(), step + 1
        if step > policy.forwards(SIZE - given):
            return ["it does not end"]
    return []


@pytest.mark.parametrize("name", names("policies"))
def test_a_policy_fills_masks_touches_nothing_given_and_ends(name: str) -> None:
    policy, source = build("policies", {"type": name}), random.Random(name)
    assert [broken_promises(policy, source) for _ in range(20)] == [[]] * 20


@pytest.mark.parametrize("name", names("policies"))
def test_a_policy_looks_at_every_mask_and_asks_for_statistics_there_are(name: str) -> None:
    policy = build("policies", {"type": name})
    now = canvas([1, 2, MASK, MASK, 3, MASK, 4, 5], 1, 2, 6, ())
    assert bool(policy.looked_at(now)[masked(now)].all())
    assert policy.needs <= {"entropy", "second", "ranked"} and policy.post_steps >= 0


@pytest.mark.parametrize("name", names("policies"))
def test_a_block_that_is_not_ready_is_filled_where_the_policy_is_sure_and_nowhere_else(name: str) -> None:
    policy, source = build("policies", {"type": name}), random.Random(name)
    for step in range(20):
        now, found = canvas([1, MASK, MASK, 2, MASK, 3, MASK, MASK], step, 1, 5, ()), stats(source)
        unsure = Stats(
            found.best, found.probability * 0.01, found.best + 9.0, found.probability * 0.001, found.ranked, found.ranks
        )
        ready, waiting = policy.step(found, now), policy.step(found, replace(now, ready=False))
        assert not bool((waiting.unmasked & ~ready.unmasked).any())
        assert not bool(policy.step(unsure, replace(now, ready=False)).unmasked.any())
        assert waiting.remasked is None or not bool(waiting.remasked.any())
        assert bool(policy.step(unsure, now).unmasked.any())


def test_planted_policies_are_seen() -> None:
    class Lazy(BlockPolicy):
        """Fills nothing."""

        def step(self, stats: Stats, canvas: Canvas) -> Update:
            return fill(stats, canvas, torch.zeros(SIZE, dtype=torch.bool))

    class Writing(BlockPolicy):
        """Fills its canvas in place."""

        def step(self, stats: Stats, canvas: Canvas) -> Update:
            update = fill(stats, canvas, masked(canvas))
            canvas.tokens[:] = update.tokens
            return update

    assert broken_promises(Lazy(), random.Random(0)) == ["it fills no mask"]
    assert broken_promises(Writing(), random.Random(0)) == ["it writes to its canvas"]
