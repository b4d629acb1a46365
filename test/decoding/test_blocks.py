# Blocks of a sequence and windows of a canvas: pure integers checked against counting.
# Entry points: the tests.
# Blocks are absolute, so a prompt's tail shares its block with the first generated tokens.
"""Blocks and canvas."""

from __future__ import annotations

import pytest
import torch

from hildanext.core.types import Update
from hildanext.decoding.blocks import Blocks, Span
from hildanext.decoding.canvas import RequestCanvas
from hildanext.errors import DecodeError


def canvas(given: int, new: int, block: int, **more: int) -> RequestCanvas:
    blocks = Blocks(given, new, block, **more)
    tokens = torch.full((blocks.length,), 9)
    tokens[:given] = 1
    return RequestCanvas(blocks, tokens, torch.arange(blocks.length) >= given, 9)


@pytest.mark.parametrize("block", [1, 4, 7])
def test_blocks_cover_the_canvas_once_and_respect_absolute_boundaries(block: int) -> None:
    for given in range(2 * block + 2):
        for new in range(2 * block + 2):
            blocks = Blocks(given, new, block)
            covered = [i for span in blocks.spans() for i in range(span.start, span.stop)]
            assert covered == list(range(blocks.length)) and blocks.limit <= blocks.length < blocks.limit + block
            assert all(blocks.span(i).start == i // block * block for i in covered)
            assert blocks.first_open <= given and blocks.first_open % block == 0


def test_the_window_bounds_the_canvas_but_not_below_what_was_asked() -> None:
    assert Blocks(10, 5, 8, window=15).length == 15
    assert Blocks(10, 5, 8, window=16).length == 16
    with pytest.raises(DecodeError, match="at most 4"):
        Blocks(11, 5, 8, window=15)


def test_windows_prefill_whole_blocks_within_the_budget_then_hold_the_active_block() -> None:
    made = canvas(19, 6, 4)
    assert made.active() == Span(16, 20) and made.masks == 1
    window = made.window(8, True)
    assert (window.start, window.stop, window.active) == (0, 8, None) and window.final_on_entry == 8
    made.committed = 8
    assert made.window(8, True).active is None
    assert made.window(12, True).active == Span(16, 20) and made.window(12, True).final_on_entry == 8
    assert made.window(12, False).active is None
    made.committed = 16
    assert (made.window(1, False).start, made.window(1, False).stop) == (16, 20)


def test_given_blocks_between_gaps_are_never_active() -> None:
    tokens = torch.tensor([1, 9, 1, 1, 1, 1, 1, 9, 1])
    made = RequestCanvas(Blocks(0, 9, 2, whole=False), tokens, tokens == 9, 9)
    assert made.active() == Span(0, 2)
    made.close()
    assert made.active() == Span(6, 8)
    made.close()
    assert made.finished and made.active() == Span(9, 9)


def test_a_reverted_edit_is_counted() -> None:
    made = canvas(0, 3, 3)
    no, yes = torch.zeros(3, dtype=torch.bool), torch.tensor([True, False, False])
    made.apply(Update(torch.tensor([4, 5, 6]), ~no, no), True, 16)
    assert made.apply(Update(torch.tensor([7, 5, 6]), no, yes), True, 16).reverted == 0
    step = made.apply(Update(torch.tensor([4, 5, 6]), no, yes), True, 16)
    assert (step.reverted, step.applied, step.final) == (1, 1, False)
    last = made.apply(Update(torch.tensor([4, 5, 6]), no, no), True, 16)
    assert last.final and last.committed_on_entry
