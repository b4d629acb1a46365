# The engine's tokens are those of a decoder that shares no code with it: every policy, greedy, sampled and guided.
# Entry points: the tests.
# Tiny random Qwen3 and Llama, float32; an empty prompt is left out: its all-[MASK] block is one exact tie.
"""The engine against the independent decoder."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from decoding import oracle
from decoding.subjects import BLOCK, POLICIES, SAMPLINGS, Subject, decoded, expected, opened, prompt, request

from hildanext.registry import names

LENGTHS = (1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1)
CASES = [(policy, sampling) for policy in POLICIES for sampling in SAMPLINGS]


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def subject(request: Any, random_model: Any) -> Subject:
    return opened(random_model, request.param)


@pytest.mark.parametrize(("policy", "sampling"), CASES)
def test_tokens_are_those_of_an_independent_decoder(subject: Subject, policy: str, sampling: str) -> None:
    number = CASES.index((policy, sampling))
    asked = request(prompt(LENGTHS[(number + number // 5) % 6], number), 9, policy, sampling)
    assert list(decoded(subject, asked).token_ids) == expected(subject, asked)


@pytest.mark.parametrize("policy", ["editing", "margin", "entropy_bound", "factor"])
def test_a_confidence_behind_the_cuts_is_that_of_the_independent_decoder(subject: Subject, policy: str) -> None:
    asked = request(prompt(5, 2), 9, policy, "sampled")
    assert list(decoded(subject, asked, confidence="sampled").token_ids) == expected(subject, asked, "sampled")


@pytest.mark.parametrize("policy", POLICIES)
def test_sampling_that_leaves_one_token_is_greedy_decoding_token_for_token(subject: Subject, policy: str) -> None:
    ids = prompt(LENGTHS[list(POLICIES).index(policy) % 6], 3)
    greedy = decoded(subject, request(ids, 6, policy))
    for cold in ({"top_k": 1}, {"top_p": 1e-300}, {"temperature": 1e-40}):
        found = decoded(subject, request(ids, 6, policy, **{"temperature": 0.9, **cold}))
        assert (found.token_ids, found.metrics.forwards) == (greedy.token_ids, greedy.metrics.forwards), cold


def test_every_policy_with_an_oracle_is_decoded_and_is_one_of_the_package() -> None:
    assert {fields["type"] for fields in POLICIES.values()} == set(oracle.RULES) <= set(names("policies"))


def test_the_oracle_imports_nothing_of_the_package() -> None:
    for name in ("oracle.py", "oracle_rules.py", "oracle_windows.py"):
        tree = ast.parse((Path(__file__).parent / name).read_text(encoding="utf-8"))
        found = [
            getattr(node, "module", None) or node.names[0].name for node in ast.walk(tree) if hasattr(node, "names")
        ]
        assert not [module for module in found if str(module).startswith("hildanext")]
