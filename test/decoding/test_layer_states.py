# A second kind of layer state goes through the whole decoder: caching, batching, preemption, fused commits, growth.
# Entry points: the tests; the state and its model are in sums, what is checked in checks.
# Each error of a state is planted once, and the check that must notice it fails.
"""Layer states that are not keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding import checks
from decoding.subjects import BLOCK, Subject, engine, prompt, request
from decoding.sums import DECAY, WIDTH, Summing, Sums, summing


@pytest.fixture(scope="module", params=[False, True], ids=["padded", "packed"])
def subject(request: Any) -> Subject:
    return summing(request.param)


@pytest.mark.parametrize(
    ("policy", "sampling"), [("no editing", "greedy"), ("editing", "sampled"), ("remask", "guided")]
)
def test_cached_fused_separate_and_uncached_decoding_agree(subject: Subject, policy: str, sampling: str) -> None:
    checks.every_way_of_caching_agrees(subject, policy, sampling, (0, 3, BLOCK, 2 * BLOCK + 1))


@pytest.mark.parametrize(("seed", "preempt", "requests"), [(1, 0.0, 64), (2, 0.0, 3), (10, 0.3, 4)])
def test_company_and_preemption_change_nothing(subject: Subject, seed: int, preempt: float, requests: int) -> None:
    checks.company_changes_nothing(subject, seed, preempt, requests=requests)


def committed_sums_are_exact(subject: Subject) -> None:
    made = engine(subject)
    made.submit(request(prompt(13), 30, "editing"))
    made.step()
    live, seen = made.running[0], set()
    while made.pending:
        wanted, held = torch.zeros(WIDTH), live.canvas.committed
        for token in live.canvas.tokens[:held]:
            wanted = DECAY * wanted + subject.parts.denoiser.table[token]
        assert torch.equal(made.store.layer(0, Sums).past[live.slots[0]], wanted)
        seen.add(held)
        made.step()
    assert len(seen) >= 4


def test_the_state_behind_a_commit_is_that_of_the_final_tokens(subject: Subject) -> None:
    committed_sums_are_exact(subject)


def test_the_text_depends_on_the_state(subject: Subject) -> None:
    asked = [request((*ids, *prompt(BLOCK)), 12, "no editing") for ids in (prompt(BLOCK, 1), prompt(BLOCK, 2))]
    one, other = checks.alone(subject, asked)
    assert one != other


def _whole_forward(self: Any, slot: int, length: int) -> None:
    self.past[slot] = self.aside[slot][1][-1]


def _ways(subject: Subject) -> None:
    checks.every_way_of_caching_agrees(subject, "no editing", "greedy", (BLOCK + 3,))


def _company(subject: Subject) -> None:
    checks.company_changes_nothing(subject, 2, requests=3)


ERRORS = (
    ("commit", lambda *_: None, _ways), ("commit", _whole_forward, _ways), ("commit", _whole_forward,
     committed_sums_are_exact), ("move", lambda *_: None, _company), ("release", lambda *_: None, _company),
)  # fmt: skip


@pytest.mark.parametrize(("method", "error", "check"), ERRORS)
def test_a_planted_error_of_a_state_is_noticed(method: str, error: Any, check: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Sums, method, error)
    with pytest.raises(AssertionError):
        check(summing(True))


def test_work_that_is_not_committed_is_dropped() -> None:
    state = Sums(2, 16)
    first, second = torch.ones(1, 4, WIDTH), torch.arange(4.0 * WIDTH).view(1, 4, WIDTH)
    assert isinstance(Summing(), Summing)
    for new in (first, second):
        state.append([(1, 0, 4, 0, 0)], new)
    state.commit(1, 2)
    assert torch.equal(state.past[1], second[0, 1])
