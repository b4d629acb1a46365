# Sampling from a linear head against softmax in float64 and the inverse of its distribution, by scipy and by numpy.
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

from hildanext.core.head import HeadOptions, sample_tokens

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
