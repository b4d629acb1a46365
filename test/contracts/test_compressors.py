# What every rule about keys keeps: a bool per head and column or nothing, no change of what it reads, the same twice.
# Entry points: pytest. A new rule is found by its file; what it drops is tested in test/decoding/test_kv.py.
# Keys are random numbers, so no model takes part.
"""Contract of the compressors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hildanext.decoding.compression import Known, KVCompressor
from hildanext.registry import build, names

HEADS, COLUMNS, LENGTH = 2, 40, 50
SMALL: dict[str, dict[str, Any]] = {
    "window": {"sinks": 2, "recent": 9}, "knorm": {"budget": 5, "recent": 8}, "mage": {"budget": 4},
    "kvzap": {"threshold": 0.0, "recent": 8},
}  # fmt: skip


def known(seed: int) -> Known:
    """Random keys at the last positions of a text; the second head has four fewer."""
    source = torch.Generator().manual_seed(seed)
    key, value = (torch.randn(HEADS, COLUMNS, 4, generator=source) for _ in range(2))
    place = torch.arange(LENGTH - COLUMNS, LENGTH).repeat(HEADS, 1)
    place[1, -4:] = -1
    return Known(key, value, place, LENGTH, torch.randn(HEADS, COLUMNS, generator=source))


def broken_promises(rule: Any, seed: int) -> list[str]:
    """What is wrong with what a rule says."""
    one, before = known(seed), known(seed)
    mass, weighed = one.value.square().sum(dim=2), before.value.square().sum(dim=2)
    said = [rule.kept(one), rule.seen(mass) if rule.looks else None]
    again = [rule.kept(one), rule.seen(mass) if rule.looks else None]
    problems = []
    for first, second in zip(said, again, strict=True):
        if first is not None and (first.dtype != torch.bool or first.shape != (HEADS, COLUMNS)):
            problems.append("it says no bool of each head and column")
        if (first is None) != (second is None) or first is not None and not torch.equal(first, second):
            problems.append("it is no function of its arguments")
    if not torch.equal(one.key, before.key) or not torch.equal(one.place, before.place):
        problems.append("it writes to what it reads")
    if not torch.equal(mass, weighed):
        problems.append("it writes to what it reads")
    return problems


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("name", names("compressors"))
def test_a_rule_says_a_bool_of_each_column_and_is_a_function(name: str, small: bool) -> None:
    rule = build("compressors", {"type": name, **(SMALL.get(name, {}) if small else {})})
    assert isinstance(rule, KVCompressor) and [broken_promises(rule, seed) for seed in range(4)] == [[]] * 4


def test_what_the_rules_keep_counted_by_hand() -> None:
    one, rules = known(1), {name: build("compressors", {"type": name, **more}) for name, more in SMALL.items()}
    places, norms = one.place.tolist(), one.key.norm(dim=2).tolist()
    kept = {name: rule.kept(one) for name, rule in rules.items()}
    for head in range(HEADS):
        older = [column for column in range(COLUMNS) if 0 <= places[head][column] < LENGTH - 8]
        shortest = sorted(older, key=lambda column: norms[head][column])[:5]
        recent = {column for column in range(COLUMNS) if places[head][column] >= LENGTH - 8}
        assert set(kept["knorm"][head].nonzero().flatten().tolist()) == recent | set(shortest)
        wanted = [place >= LENGTH - 9 for place in places[head]]
        assert [bool(own) for own in kept["window"][head]][:36] == wanted[:36]
    mass = torch.tensor([[1.0, 9, 2, 8, 3, 7, 0], [5.0, 5, 5, 5, 6, 1, 1]])
    assert rules["mage"].seen(mass)[0].tolist() == [False, True, False, True, True, True, False]
    assert rules["mage"].seen(mass)[1].sum() == 4 and not rules["mage"].wants(4) and rules["mage"].wants(5)


def test_a_planted_rule_that_writes_is_seen() -> None:
    class Writing(KVCompressor):
        """Forgets where keys are."""

        def kept(self, known: Known) -> Tensor | None:
            known.place.zero_()
            return known.place == 0

    assert "it writes to what it reads" in broken_promises(Writing(), 0)
