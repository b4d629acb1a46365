# What every carry keeps: one weight per id and position, finite numbers, no change of what it reads, the same twice.
# Entry points: pytest. A new carry is found by its file; its formula is tested in test/decoding/test_carry.py.
# Predictions are random numbers, so no model takes part.
"""Contract of the carries."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hildanext.core.carry import Carried, Carry, Likely, likely
from hildanext.registry import build, names

MASK, ROWS = 9, 5


def found(seed: int) -> Likely:
    """The prediction of random logits."""
    scores = torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(seed))
    return likely(scores, MASK, 4)


def broken_promises(carry: Any, seed: int) -> list[str]:
    """What is wrong with what a carry gives."""
    seen, before = found(seed), found(seed)
    made = [carry.carried(seen, 3)]
    if carry.filled:
        made.append(carry.held(seen.ids[:, 0], seen.probability[:, 0]))
    again = carry.carried(seen, 3)
    problems = []
    for one in made:
        if one.ids.shape != one.weights.shape or one.mask_weight.shape != one.ids.shape[:1]:
            problems.append("ids, weights and the weight of [MASK] do not belong together")
        if not bool(one.weights.isfinite().all()) or not bool((one.weights >= 0).all()) or (one.ids == MASK).any():
            problems.append("weights are finite and not negative, and [MASK] has its own")
    if not torch.equal(again.weights, made[0].weights):
        problems.append("it is no function of its arguments")
    if not torch.equal(seen.probability, before.probability):
        problems.append("it writes to what it reads")
    return problems


@pytest.mark.parametrize("name", names("carries"))
def test_a_carry_gives_weights_for_ids_and_is_a_function(name: str) -> None:
    carry = build("carries", {"type": name})
    assert isinstance(carry, Carry) and [broken_promises(carry, seed) for seed in range(5)] == [[]] * 5


def test_a_planted_carry_that_writes_is_seen() -> None:
    class Writing(Carry):
        """Overwrites the prediction."""

        def carried(self, found: Likely, step: int) -> Carried:
            found.probability.mul_(0.5)
            return Carried(found.ids, found.probability, found.spread)

    assert "it writes to what it reads" in broken_promises(Writing(), 0)
