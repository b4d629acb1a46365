# Hybrid parents in the decoder: a recurrent layer's pair goes through caching, batching, preemption, fused commits.
# Entry points: the tests; the oracle of the texts is transformers' own code, run in full for every step (oracle.py).
# An LFM2-like network (convolutions only) and a Qwen3.5-like one (Gated DeltaNet), float32, in full; every other family
# that a mixer is exact for with one policy each.
"""Decoding with recurrent layers."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from decoding import checks
from decoding.reference import loaded
from decoding.subjects import BLOCK, LETTERS, Letters, Subject, decoded, engine, prompt, request
from decoding.test_prefixes import Spelled
from models.hybrids import HYBRIDS, Own, hybrid

from hildanext.decoding.graphs import Graphed
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError, ModelError
from hildanext.models.meta import HildaMeta
from hildanext.models.mixer import Pairs

FAMILIES = ("lfm2", "qwen3_5_text")
OTHERS = [family for family in HYBRIDS if family not in FAMILIES]


def opened(family: str, shift: str = "none") -> Subject:
    kinds = {name: value[:2] for name, value in HYBRIDS[family].items() if name in ("layer_types", "layers_block_type")}
    kinds["num_hidden_layers"] = 2
    parts = loaded(hybrid(family, 1, **kinds), Letters())
    parts.denoiser.shift = shift
    return Subject(parts, Own(family, 1, **kinds))


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: Any) -> Subject:
    return opened(request.param)


@pytest.fixture(scope="module", params=OTHERS)
def other(request: Any) -> Subject:
    return opened(request.param)


def test_every_family_decodes_as_transformers_own_code_does(other: Subject) -> None:
    checks.windows_are_the_oracles(other, "editing", "greedy", 1, (2 * BLOCK + 1,))
    checks.windows_are_the_oracles(other, "editing", "greedy", 2, (3,))


def test_every_family_decodes_the_same_cached_fused_and_in_company(other: Subject) -> None:
    checks.every_way_of_caching_agrees(other, "editing", "greedy", (BLOCK + 3,))
    asked = checks.some_requests(3, 3)
    made = engine(other, requests=2)
    assert checks.mixed(made, asked, random.Random(3), 0.3) == checks.alone(other, asked)


def test_every_family_fills_gaps(other: Subject) -> None:
    gaps_are_filled(other)


@pytest.mark.parametrize(("policy", "sampling"), [("no editing", "greedy"), ("editing", "sampled")])
def test_texts_are_those_of_transformers_own_code(subject: Subject, policy: str, sampling: str) -> None:
    checks.tokens_are_the_oracles(subject, policy, sampling)


def test_windows_are_those_of_transformers_own_code(subject: Subject) -> None:
    checks.windows_are_the_oracles(subject, "no editing", "greedy", 2, (3,))
    checks.windows_are_the_oracles(subject, "editing", "greedy", 3, (BLOCK,))


@pytest.mark.parametrize(("policy", "sampling"), [("editing", "greedy"), ("remask", "guided sampled")])
def test_cached_fused_separate_and_uncached_decoding_agree(subject: Subject, policy: str, sampling: str) -> None:
    checks.every_way_of_caching_agrees(subject, policy, sampling, (0, 2 * BLOCK + 1))


def test_company_and_preemption_change_nothing(subject: Subject) -> None:
    checks.company_changes_nothing(subject, 2, 0.3, requests=4)


def test_gaps_are_filled_between_given_tokens(subject: Subject) -> None:
    gaps_are_filled(subject)


def gaps_are_filled(subject: Subject) -> None:
    parts = SimpleNamespace(**vars(subject.parts) | {"tokenizer": Spelled(), "meta": HildaMeta(document_start=[])})
    text = "".join(LETTERS[token] for token in prompt(30))
    asked = Request.of(prompt=f"{text[:5]}<gap:3>{text[5:13]}<gap:9>{text[13:]}", infill=True)
    ways = [decoded(Subject(parts, None), asked, **how).text for how in ({}, {"cache": False}, {"fuse": False})]
    assert ways[0] == ways[1] == ways[2] and len(ways[0]) == 42 and ways[0].endswith(text[13:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shifted_model_looks_one_position_back(family: str) -> None:
    shifted = opened(family, "clean")
    for policy, length in (("editing", BLOCK), ("no editing", BLOCK + 3)):
        checks.every_way_of_caching_agrees(shifted, policy, "greedy", (length,))
    checks.every_way_of_caching_agrees(shifted, "no editing", "greedy", (5,), block=1)


def test_what_is_kept_is_of_one_size_and_counted(subject: Subject) -> None:
    model, kept = subject.parts.denoiser, []
    for length in (16, 160):
        made = engine(subject)
        made.submit(request(prompt(length), 2 * BLOCK, "no editing"))
        for _ in range(3):
            made.step()
        pairs = [state for state in made.store.layers.values() if isinstance(state, Pairs)]
        sizes = [one.numel() * one.element_size() for state in pairs for one in state.past[0][made.store.lengths[0]]]
        kept.append(sum(sizes))
    assert len(pairs) == 1 and kept == [model.state_bytes(0)] * 2
    assert model.state_bytes(10) - model.state_bytes(0) == 10 * 2 * 2 * 8 * 4


def test_prefixes_are_not_shared_and_captured_forwards_refused(subject: Subject) -> None:
    made = engine(subject)
    texts = [made.generate(request(prompt(20), 9, "no editing")) for _ in range(2)]
    assert texts[0].token_ids == texts[1].token_ids and [one.metrics.cached_tokens for one in texts] == [0, 0]
    assert made.sharing.tree.runs == {}
    with pytest.raises(ModelError, match="recurrent"):
        Graphed(subject.parts.denoiser, 1, 64, lambda work: work)


def _newest(self: Pairs, slot: int, length: int) -> None:
    found = self.aside.pop(slot)
    self.past[slot] = {length: found[max(found)]}


def _ways() -> None:
    checks.every_way_of_caching_agrees(opened("qwen3_5_text"), "no editing", "greedy", (BLOCK + 3,))


def _company() -> None:
    checks.company_changes_nothing(opened("qwen3_5_text"), 2, requests=2)


def _emptied(self: Pairs, places: Any, empty: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.stack([one] * (1 + len(places))) for one in empty)


ERRORS = (
    ("commit", _newest, _ways), ("begin", _emptied, _ways), ("move", lambda *_: None, _company),
)  # fmt: skip


@pytest.mark.parametrize(("method", "error", "check"), ERRORS)
def test_a_planted_error_of_the_pair_is_noticed(method: str, error: Any, check: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Pairs, method, error)
    with pytest.raises((AssertionError, ValueError)):
        check()


def test_a_pair_that_was_not_computed_is_not_committed() -> None:
    with pytest.raises(ValueError, match="behind 3"):
        Pairs(1, 8).commit(0, 3)


def test_a_rule_about_keys_is_refused(subject: Subject) -> None:
    with pytest.raises(DecodeError, match="kv: recurrent layers keep a state that is no keys"):
        engine(subject).submit(request(prompt(3), 4, "no editing", kv="window"))
