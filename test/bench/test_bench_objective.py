# The objective benchmark's instruments: equal gradients, a peak meter that sees memory, ratios of what was measured.
# Entry points: pytest.
# No speed is asserted here: the machine is shared. `hildanext bench objective` prints the figures.
"""Tests of bench/objective.py."""

from __future__ import annotations

import torch

from hildanext.bench.objective import SHAPES, Shape, _measured, compare


def test_both_forms_give_the_same_gradients_and_the_ratios_are_of_the_figures():
    for frozen in (False, True):
        found = compare(Shape("small", length=32, vocabulary=500, width=16, supervised=0.6, frozen=frozen, repeats=2))
        assert found["gradient_difference"] < 1e-5
        assert found["time_ratio"] == found["chunked"]["seconds"] / found["plain"]["seconds"]


def test_the_peak_meter_sees_a_buffer_that_is_gone_again_also_where_the_heap_kept_as_much():
    size = 64 * 2**20
    kept = [torch.ones(2**14) for _ in range(2 * size // 2**16)]
    last = torch.ones(2**14)
    del kept

    def form(features, *unused):
        torch.ones(size // 4).sum()
        return features.sum()

    taken = _measured(form, (torch.zeros(1, requires_grad=True),) * 4)
    assert 0.9 * size < taken[2] < 1.5 * size and last.numel()


def test_the_shapes_hold_the_large_vocabulary_at_512_tokens_and_a_small_one():
    assert (SHAPES[0].length, SHAPES[0].vocabulary) == (512, 151_936)
    assert min(shape.vocabulary for shape in SHAPES) < 1000
