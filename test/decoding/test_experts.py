# A mixture of experts in the decoder: positions of all requests go through an expert together, and no text changes.
# Entry points: pytest.
# The oracle is transformers' loop over experts, one product each, and every request alone.
"""Decoding with experts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from decoding import checks
from decoding.reference import loaded
from decoding.subjects import BLOCK, Letters, Subject, decoded, engine, prompt, request
from models.families import Family, network, tiny

from hildanext.models.experts import routers_of


def opened() -> Subject:
    return Subject(loaded(network(tiny(Family("qwen3_moe", "")), 1), Letters()), None)


def texts(subject: Subject) -> list[Any]:
    asked = [request(prompt(length, length), BLOCK + length, "editing") for length in (3, BLOCK, 13)]
    made = engine(subject, requests=3)
    return checks.mixed(made, asked, random.Random(1))


def test_texts_are_those_of_one_expert_after_the_other_and_of_each_request_alone() -> None:
    grouped, each = opened(), opened()
    each.parts.denoiser.model.set_experts_implementation("eager")
    assert grouped.parts.denoiser.config._experts_implementation != "eager"
    found = texts(grouped)
    assert found == texts(each)
    asked = [request(prompt(length, length), BLOCK + length, "editing") for length in (3, BLOCK, 13)]
    assert found == [checks.answer(decoded(each, one)) for one in asked]


def test_a_planted_router_that_looks_at_its_company_is_seen() -> None:
    subject = opened()

    def swayed(router: Any, given: Any, output: Any) -> Any:
        logits, weights, chosen = output
        return logits, weights, (chosen + len(chosen) // BLOCK) % logits.shape[1]

    for _, router in routers_of(subject.parts.denoiser.model):
        router.register_forward_hook(swayed)
    asked = [request(prompt(length, length), BLOCK + length, "editing") for length in (3, BLOCK, 13)]
    with torch.no_grad(), pytest.raises(AssertionError):
        assert texts(subject) == [checks.answer(decoded(subject, one)) for one in asked]
