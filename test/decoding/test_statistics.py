# What is read from logits: ties, exclusion of [MASK], entropy, margin, sampling, guidance, bias; chunks change nothing.
# Entry points: the tests; the oracles are closed forms and scipy's chi-squared test.
# Letters: n positions, V vocabulary.
"""Statistics and sampling."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from hildanext.core import head
from hildanext.decoding.randomness import CHOICE, SAMPLE, uniform
from hildanext.decoding.statistics import LARGE, PART, Bias, Sampling, guided, likeliest, statistics

ALL = frozenset({"entropy", "second"})


def logits(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 2


def draws(count: int, step: int = 0) -> torch.Tensor:
    return uniform(3, 0, torch.arange(count), step, SAMPLE)


def test_greedy_statistics_equal_the_softmax_without_the_mask() -> None:
    scores = logits(7, 11)
    wanted = scores.clone().double()
    wanted[:, 4] = -torch.inf
    p = wanted.softmax(dim=1)
    found = statistics(scores, 4, Sampling(), ALL, None, None)
    assert found.best.tolist() == p.argmax(dim=1).tolist()
    torch.testing.assert_close(found.probability.double(), p.max(dim=1).values, atol=1e-6, rtol=0)
    top = p.sort(dim=1, descending=True).values
    torch.testing.assert_close(found.second.double(), top[:, 1], atol=1e-6, rtol=0)
    entropy = -(p * p.clamp(min=1e-30).log()).sum(dim=1)
    torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-6, rtol=0)


def test_only_what_is_needed_is_computed() -> None:
    found = statistics(logits(2, 5), 0, Sampling(), frozenset(), None, None)
    assert found.entropy is None and found.second is None


def test_the_mask_is_never_the_prediction_even_when_it_is_certain() -> None:
    scores = logits(3, 6)
    scores[:, 2] = 1e4
    for sampling in (Sampling(), Sampling(temperature=1.0), Sampling(temperature=0.5, top_k=2, top_p=0.5)):
        assert not (statistics(scores.clone(), 2, sampling, ALL, draws(3), None).best == 2).any()


def test_equal_logits_give_the_lowest_token() -> None:
    scores = torch.zeros(3, 1000)
    scores[1, 500] = scores[1, 900] = 2.0
    assert statistics(scores, 0, Sampling(), frozenset(), None, None).best.tolist() == [1, 500, 1]


def test_chunks_change_nothing(monkeypatch: Any) -> None:
    cases = (Sampling(), Sampling(temperature=0.7, top_k=5, top_p=0.9))
    bias = Bias(torch.arange(9).unsqueeze(1), torch.full((9, 1), -1.0))
    whole = [statistics(logits(9, 13), 1, case, ALL, draws(9), bias) for case in cases]
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(head, "LEAST_ROWS", 2)
    for case, wanted in zip(cases, whole, strict=True):
        found = statistics(logits(9, 13), 1, case, ALL, draws(9), bias)
        assert torch.equal(found.best, wanted.best) and torch.equal(found.probability, wanted.probability)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_tempered_softmax(temperature: float) -> None:
    row, count = logits(1, 6, 3), 100_000
    p = row.masked_fill(torch.arange(6) == 5, -torch.inf).div(temperature).softmax(dim=1)[0, :5].double()
    found = statistics(
        row.expand(count, 6).clone(), 5, Sampling(temperature=temperature), frozenset(), draws(count), None
    )
    seen = torch.bincount(found.best, minlength=6)[:5]
    assert chisquare(seen.numpy(), (p / p.sum() * count).numpy()).pvalue > 1e-3


def test_cuts_keep_the_likeliest_tokens_and_the_one_that_crosses_the_mass() -> None:
    row = torch.tensor([[0.5, 0.3, 0.15, 0.04, 0.01, 1e-9]]).log()
    many = row.expand(2000, 6).clone
    top_k = statistics(many(), 5, Sampling(temperature=1.0, top_k=2), frozenset(), draws(2000), None)
    assert set(top_k.best.tolist()) == {0, 1}
    top_p = statistics(many(), 5, Sampling(temperature=1.0, top_p=0.81), frozenset(), draws(2000), None)
    assert set(top_p.best.tolist()) == {0, 1, 2}
    torch.testing.assert_close(top_k.probability[top_k.best == 0][0], torch.tensor(0.5))
    cut = statistics(many(), 5, Sampling(1.0, top_k=2, confidence="sampled"), frozenset(), draws(2000), None)
    torch.testing.assert_close(cut.probability[cut.best == 0][0], torch.tensor(0.5 / 0.8))


def test_raw_confidence_ignores_temperature_and_sampled_confidence_does_not() -> None:
    raw = statistics(logits(5, 9), 0, Sampling(temperature=0.5), frozenset(), draws(5), None)
    hot = statistics(logits(5, 9), 0, Sampling(temperature=0.5, confidence="sampled"), frozenset(), draws(5), None)
    scores = logits(5, 9)
    scores[:, 0] = -torch.inf
    for found, p in ((raw, scores.softmax(dim=1)), (hot, (scores / 0.5).softmax(dim=1))):
        torch.testing.assert_close(found.probability, p.gather(1, found.best.unsqueeze(1)).squeeze(1))


COLD = (Sampling(1.0, top_k=1), Sampling(2.0, top_p=1e-300), Sampling(1e-40), Sampling(9e-6), Sampling(1e-5, top_k=1))


@pytest.mark.parametrize("sampling", [*COLD, Sampling(0.3, 1, confidence="raw")])
def test_one_token_left_or_no_warmth_is_the_greedy_token_with_the_greedy_numbers(sampling: Sampling) -> None:
    scores = logits(400, 7).mul(3).round()
    greedy, found = (statistics(scores.clone(), 3, one, ALL, draws(400), None) for one in (Sampling(), sampling))
    for own, wanted in zip((found.best, found.probability, found.entropy, found.second),
                           (greedy.best, greedy.probability, greedy.entropy, greedy.second), strict=True):  # fmt: skip
        assert own is not None and wanted is not None and torch.equal(own, wanted)


@pytest.mark.parametrize("sampling", [Sampling(100.0), Sampling(1e-5), Sampling(0.7, 5, 0.9), Sampling(3e-5, 0, 0.5)])
def test_no_temperature_gives_a_number_that_is_none(sampling: Sampling) -> None:
    scores = logits(50, 11) * torch.tensor([1e-3, 1.0, 1e3, 1e6, 0.0]).repeat(10).unsqueeze(1)
    for confidence in ("raw", "sampled"):
        found = statistics(scores.clone(), 3, replace(sampling, confidence=confidence), ALL, draws(50), None)
        assert found.entropy is not None and found.second is not None
        assert all(bool(one.isfinite().all()) for one in (found.probability, found.entropy, found.second))
        assert found.probability.max() <= 1 + 1e-6 and (found.best != 3).all()


def test_an_unlikely_drawn_token_is_not_certain_because_another_is() -> None:
    row = torch.tensor([[0.97, 0.02, 0.01, 1e-9]]).log()
    found = statistics(row.expand(2000, 4).clone(), 3, Sampling(2.0), ALL, draws(2000), None)
    assert found.entropy is not None and found.second is not None
    for token, p in enumerate((0.97, 0.02, 0.01)):
        drawn = found.best == token
        assert drawn.any() and torch.allclose(found.probability[drawn], torch.tensor(p), atol=1e-6)
        surprise = 0.0 if token == 0 else -math.log(p)
        assert torch.allclose(found.entropy[drawn], torch.tensor(max(surprise, 0.1539)), atol=1e-3)
        assert torch.allclose(found.second[drawn], torch.tensor(0.02 if token == 0 else 0.97), atol=1e-6)


def test_guidance_is_lladas_and_one_more_than_dreams() -> None:
    conditional, unconditional = logits(2, 5, 1), logits(2, 5, 2)
    torch.testing.assert_close(guided(conditional, unconditional, 0.0), conditional)
    dream = unconditional + 2.5 * (conditional - unconditional)
    torch.testing.assert_close(guided(conditional, unconditional, 1.5), dream)


def test_bias_is_added_before_anything_is_read() -> None:
    scores = torch.tensor([[3.0, 2.9, 0.0, 0.0]])
    bias = Bias(torch.tensor([[0, 1]]), torch.tensor([[-0.5, 0.0]]))
    assert statistics(scores.clone(), 3, Sampling(), frozenset(), None, bias).best.tolist() == [1]
    assert statistics(scores.clone(), 3, Sampling(), frozenset(), None, None).best.tolist() == [0]


def test_uniform_numbers_depend_on_every_key_and_are_uniform() -> None:
    positions = torch.arange(20_000)
    base = uniform(1, 0, positions, 0, SAMPLE)
    assert torch.equal(base, uniform(1, 0, positions, 0, SAMPLE))
    assert torch.equal(base[100:200], uniform(1, 0, positions[100:200], 0, SAMPLE))
    for other in ((2, 0, 0, SAMPLE), (1, 1, 0, SAMPLE), (1, 0, 1, SAMPLE), (1, 0, 0, CHOICE)):
        changed = uniform(other[0], other[1], positions, other[2], other[3])
        assert abs(torch.corrcoef(torch.stack((base, changed)))[0, 1]) < 0.03
    assert chisquare(torch.histc(base, 50, 0, 1).numpy()).pvalue > 1e-3
    assert float(base.min()) >= 0.0 and float(base.max()) < 1.0


@pytest.mark.parametrize("vocabulary", [LARGE - 1, LARGE, LARGE + 1, 3 * LARGE + PART - 1])
def test_the_likeliest_of_a_large_vocabulary_is_torchs_argmax_and_the_lowest_of_equals(vocabulary: int) -> None:
    scores = torch.randn(7, vocabulary, generator=torch.Generator().manual_seed(0))
    assert torch.equal(likeliest(scores), scores.argmax(dim=1))
    for places in ([vocabulary - 1], [5, PART + 5], [PART - 1, PART], [vocabulary - 2, vocabulary - 1]):
        scores[:, places] = 9.0
        assert likeliest(scores).tolist() == [min(places)] * 7
        scores[:, places] = 0.0
    assert likeliest(scores.half()[:, : PART * 17]).tolist() == scores.half()[:, : PART * 17].argmax(dim=1).tolist()
