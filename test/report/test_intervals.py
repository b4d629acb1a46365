# Intervals against their formulas, by inversion and by coverage.
# Entry points: pytest.
# Wilson's interval is checked by what defines it: the score test at its ends.
"""Tests of report/intervals.py."""

from __future__ import annotations

import math
import random

import pytest

from hildanext.report.intervals import Measure, Z, mean, ratio, share


@pytest.mark.parametrize(("right", "items"), [(3, 10), (90, 100), (1, 7)])
def test_the_ends_of_a_share_are_where_the_score_test_rejects(right: int, items: int) -> None:
    found = share(right, items)
    for end in (found.low, found.high):
        assert abs(right / items - end) / math.sqrt(end * (1 - end) / items) == pytest.approx(Z)


def test_a_share_of_all_or_none_stays_within_zero_and_one() -> None:
    assert share(0, 5).low == 0.0 and share(5, 5).high == 1.0 and share(5, 5).low > 0.5


def test_ninety_five_per_cent_of_intervals_of_a_mean_cover_the_truth() -> None:
    rng = random.Random(0)
    found = [mean([rng.gauss(3.0, 2.0) for _ in range(60)]) for _ in range(200)]
    covered = sum(one.low < 3.0 < one.high for one in found) / 200
    assert 0.92 < covered < 0.98


def test_a_ratio_of_equal_denominators_is_the_mean() -> None:
    tops = [1.0, 2.0, 4.0, 9.0]
    of_sums, of_values = ratio(tops, [2.0] * 4), mean([top / 2 for top in tops])
    assert of_sums.value == pytest.approx(of_values.value) and of_sums.low == pytest.approx(of_values.low)


@pytest.mark.parametrize("found", [mean([0.0, 0.0, 0.0, 9.0]), ratio([1.0, 30.0, 0.0], [1.0, 2.0, 9.0]), mean([2.0])])
def test_an_interval_ends_within_what_the_items_can_give(found: Measure) -> None:
    assert 0.0 <= found.low <= found.value <= found.high <= 15.0


def test_an_interval_of_a_ratio_is_the_same_again() -> None:
    tops, bottoms = [float(i % 7) for i in range(50)], [1.0 + i % 3 for i in range(50)]
    assert ratio(tops, bottoms) == ratio(tops, bottoms)


@pytest.mark.parametrize("call", [lambda: share(3, 2), lambda: mean([]), lambda: ratio([1.0], [0.0])])
def test_impossible_counts_are_refused(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]
