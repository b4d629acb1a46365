# The chunk rule, [MASK] excluded, and sampling against softmax in float64 and the inverse of its distribution.
# Entry points: pytest.
# The checks take the sampler as an argument, so that wrong ones are shown to fail them.
"""Tests of core/head.py."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from core.checks import rng
from scipy import stats
from torch import Tensor

from hildanext.core import head as module
from hildanext.core import linear_cross_entropy
from hildanext.core.head import HeadOptions, chunk_rows, draw_tokens, even_rows, float_logits, row_slices, sample_tokens
from hildanext.decoding.statistics import Sampling, statistics

MASK = 11


def head(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(1, 6, generator=rng(1)).to(dtype), torch.randn(12, 6, generator=rng(2)).to(dtype)


def assert_follows_the_softmax(sampler) -> None:
    features, weight = head()
    uniform = torch.rand(30_000, generator=rng(3), dtype=torch.float64)
    found = torch.bincount(sampler(features.expand(30_000, 6), weight, uniform, HeadOptions(MASK)), minlength=12)
    logits = (weight @ features[0])[:MASK]
    wanted = logits.softmax(0) * 30_000
    assert int(found[MASK]) == 0
    assert stats.chisquare(found[:MASK].numpy(), wanted.numpy()).pvalue > 1e-3


def assert_is_the_inverse(sampler) -> None:
    """Token v exactly where uniform lies in [P(< v), P(<= v))."""
    features, weight = head()
    ends = np.cumsum(torch.softmax((weight @ features[0])[:MASK], 0).numpy())
    uniform = np.concatenate([[0.0], ends[:-1] - 1e-9, ends[:-1] + 1e-9, [1 - 1e-9, np.nextafter(1, 0)]])
    found = sampler(features.expand(len(uniform), 6), weight, torch.tensor(uniform), HeadOptions(MASK))
    assert found.tolist() == [0, *range(10), *range(1, 11), 10, 10]


def test_draws_follow_the_softmax_without_mask():
    assert_follows_the_softmax(sample_tokens)


def test_a_uniform_gives_the_token_whose_share_it_lies_in():
    assert_is_the_inverse(sample_tokens)


def _wrong(fault: str, features: Tensor, weight: Tensor, uniform: Tensor, options: HeadOptions) -> Tensor:
    if fault == "best":
        return (features @ weight[:MASK].T).argmax(1)
    if fault == "any token":
        return (uniform * MASK).long()
    if fault == "tempered":
        return sample_tokens(features * 1.1, weight, uniform, options)
    if fault == "mask drawn":
        return sample_tokens(features, weight, uniform, HeadOptions())
    if fault == "half of the numbers":
        return sample_tokens(features, weight, uniform / 2, options)
    return sample_tokens(features, weight, uniform, options) + (fault == "one further")


@pytest.mark.parametrize("fault", ["best", "any token", "tempered", "mask drawn", "half of the numbers", "one further"])
def test_wrong_samplers_fail(fault):
    for check in (assert_follows_the_softmax, assert_is_the_inverse):
        check(partial(_wrong, "none"))
        with pytest.raises(AssertionError):
            check(partial(_wrong, fault))


def test_chunks_change_nothing_and_nothing_gives_nothing():
    features, weight = torch.randn(50, 6, generator=rng(4)), head(torch.float32)[1]
    uniform = torch.rand(50, generator=rng(5), dtype=torch.float64)
    whole = sample_tokens(features, weight, uniform, HeadOptions(MASK))
    assert torch.equal(sample_tokens(features, weight, uniform, HeadOptions(MASK, chunk=7)), whole)
    assert sample_tokens(features[:0], weight, uniform[:0], HeadOptions(MASK)).shape == (0,)
    assert len(set(whole.tolist())) > 3


@pytest.mark.parametrize(("count", "chunk"), [(0, 0), (1, 0), (50, 7), (49, 7), (50, 0)])
def test_the_slices_of_a_chunk_rule_follow_each_other_and_cover_every_row_once(count, chunk):
    slices = list(row_slices(count, 400, chunk))
    assert [row for part in slices for row in range(count)[part]] == list(range(count))
    assert all(0 < part.stop - part.start <= chunk_rows(400, chunk) for part in slices)


def test_a_caller_that_holds_more_copies_takes_fewer_rows_but_never_less_than_sixteen():
    assert chunk_rows(151_936, copies=4) * 4 * 151_936 <= 2**24 < chunk_rows(151_936) * 2 * 151_936
    assert chunk_rows(10**7, copies=4) == 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_are_float_and_those_of_the_excluded_token_have_probability_zero(dtype):
    features, weight = head(dtype)
    found = float_logits(features, weight, MASK)
    assert found.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert torch.equal(found[:, :MASK], (features @ weight.T).to(found.dtype)[:, :MASK])
    assert float(found.softmax(1)[0, MASK]) == 0 and bool(torch.isfinite(found).all())


def assert_edges_have_probability(draw) -> None:
    """Uniform numbers at both ends, also one that was rounded up to 1, over logits that bar ids at both ends."""
    logits = torch.randn(300, 12, generator=rng(6))
    logits[:, [0, 1, 10, 11]] = -torch.inf
    for number in (0.0, 5e-324, float(np.nextafter(1, 0)), 1.0):
        found = draw(logits, torch.full((300,), number, dtype=torch.float64))
        assert bool((logits.gather(1, found[:, None]) > -torch.inf).all())
        assert bool((found == (2 if number < 0.5 else 9)).all())


def _clamped(logits: Tensor, uniform: Tensor) -> Tensor:
    sums = logits.double().softmax(1).cumsum(1)
    found = torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True)[:, 0]
    return found.clamp(max=logits.shape[1] - 1)


def _from_the_left(logits: Tensor, uniform: Tensor) -> Tensor:
    sums = logits.double().softmax(1).cumsum(1)
    return torch.searchsorted(sums, uniform[:, None] * sums[:, -1:].nextafter(torch.zeros(1).double()))[:, 0]


def test_a_draw_at_the_edge_never_has_probability_zero():
    assert_edges_have_probability(draw_tokens)


@pytest.mark.parametrize("wrong", [_clamped, _from_the_left])
def test_an_inversion_that_takes_a_token_of_probability_zero_at_an_edge_is_seen(wrong):
    with pytest.raises(AssertionError):
        assert_edges_have_probability(wrong)


def test_the_decoder_draws_what_the_training_draft_would():
    features, weight = torch.randn(50, 6, generator=rng(4)), head(torch.float32)[1]
    uniform = torch.rand(50, generator=rng(5), dtype=torch.float64)
    drawn = statistics(features @ weight.T, MASK, Sampling(temperature=1.0), frozenset(), uniform, None).best
    assert torch.equal(drawn, sample_tokens(features, weight, uniform, HeadOptions(MASK)))


def test_the_decoder_never_draws_what_a_cut_left_out():
    logits = torch.arange(12.0).flip(0).repeat(4, 1)
    edge = torch.tensor([0.0, 0.5, float(np.nextafter(1, 0)), 1.0], dtype=torch.float64)
    found = statistics(logits, MASK, Sampling(temperature=1.0, top_k=3), frozenset(), edge, None)
    assert found.best.max() <= 2 and bool((found.probability > 0).all())


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_statistics_of_no_rows_are_empty(temperature):
    needs, uniform = frozenset({"entropy", "second"}), torch.zeros(0, dtype=torch.float64)
    found = statistics(torch.zeros(0, 12), MASK, Sampling(temperature=temperature), needs, uniform, None)
    assert all(part.shape == (0,) for part in (found.best, found.probability, found.entropy, found.second))
    assert found.best.dtype == torch.long


def test_steps_that_score_other_positions_multiply_matrices_of_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product shape stays in a cache of oneDNN: as planted, steps of 128 to 639 positions, and their loss."""
    shapes, plain = set(), linear_cross_entropy.float_logits
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 341 * 50)
    monkeypatch.setattr(
        linear_cross_entropy, "float_logits", lambda rows, weight: shapes.add(rows.shape) or plain(rows, weight)
    )
    weight = torch.randn(50, 4, generator=rng(1))
    features, targets = torch.randn(640, 4, generator=rng(2)), torch.randint(0, 50, (640,), generator=rng(3))
    nll = torch.nn.functional.cross_entropy(features @ weight.T, targets, reduction="none")
    for count in range(128, 640, 3):
        given = (features[:count], weight, targets[:count], torch.ones(count))
        total, scores = linear_cross_entropy.weighted_cross_entropy(*given)
        assert len(scores.nll) == count and float(total) == pytest.approx(float(nll[:count].sum()), rel=1e-5)
    assert len(shapes) <= 24


@pytest.mark.parametrize("vocabulary", [998, 49_153, 151_936])
def test_rounding_up_adds_a_sixteenth_at_most(vocabulary: int) -> None:
    for count in range(5000):
        more = even_rows(count, vocabulary) - count
        assert 0 <= more <= max(15, count / 16)
        assert even_rows(count, vocabulary, 7) == count
