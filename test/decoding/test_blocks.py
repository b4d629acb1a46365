# Blocks of a sequence and windows of a canvas: pure integers checked against counting.
# Entry points: the tests.
# Blocks are absolute, so a prompt's tail shares its block with the first generated tokens.
"""Blocks and canvas."""

from __future__ import annotations

import pytest
import torch

from hildanext.core.types import Update
from hildanext.decoding.blocks import Blocks, Span
from hildanext.decoding.policies.threshold_edit import ThresholdEdit
from hildanext.decoding.state import Look, Opening, RequestCanvas, Window
from hildanext.errors import DecodeError

TWO = Opening(ThresholdEdit(window_blocks=2, tau_add=0.0))


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


def spans(found: RequestCanvas | Window) -> list[Span]:
    return [block.span for block in found.opened]


def test_windows_prefill_whole_blocks_within_the_budget_then_hold_the_opened_block() -> None:
    made = canvas(19, 6, 4)
    assert spans(made) == [Span(16, 20)] and made.opened[0].masks == 1
    window = made.window(8, True)
    assert (window.start, window.stop, window.opened) == (0, 8, ()) and window.final_on_entry == 8
    made.committed = 8
    assert made.window(8, True).opened == ()
    assert spans(made.window(12, True)) == [Span(16, 20)] and made.window(12, True).final_on_entry == 8
    assert made.window(12, False).opened == ()
    made.committed = 16
    assert (made.window(1, False).start, made.window(1, False).stop) == (16, 20)


def test_a_window_holds_every_opened_block_or_none() -> None:
    made = canvas(19, 14, 4)
    made.opens = TWO
    made.refill()
    assert spans(made) == [Span(16, 20), Span(20, 24)]
    made.committed = 8
    assert made.window(12, True).opened == () and made.window(12, True).stop == 16
    assert spans(made.window(16, True)) == spans(made) and made.window(16, True).size == 16
    made.committed = 16
    assert made.window(1, True).size == 8


def test_given_blocks_between_gaps_are_never_opened() -> None:
    tokens = torch.tensor([1, 9, 1, 1, 1, 1, 1, 9, 1])
    made = RequestCanvas(Blocks(0, 9, 2, whole=False), tokens, tokens == 9, 9)
    assert spans(made) == [Span(0, 2)]
    assert made.close([DONE]) == 0 and spans(made) == [Span(6, 8)] and made.final == 6
    assert made.close([DONE]) == 0 and made.finished and not made.opened


def test_a_reverted_edit_is_counted() -> None:
    made, policy = canvas(0, 3, 3), ThresholdEdit()
    (block,) = made.opened
    no, yes = torch.zeros(3, dtype=torch.bool), torch.tensor([True, False, False])
    made.look(block, Update(torch.tensor([4, 5, 6]), ~no, no), policy)
    assert made.look(block, Update(torch.tensor([7, 5, 6]), no, yes), policy).reverted == 0
    look = made.look(block, Update(torch.tensor([4, 5, 6]), no, yes), policy)
    assert (look.reverted, look.applied, look.done) == (1, 1, False) and made.close([look]) == 0 and made.opened
    last = made.look(block, Update(torch.tensor([4, 5, 6]), no, no), policy)
    assert made.close([last]) == 3 and made.finished


DONE, RIGHT = Look(False, True, True, 0, 0), Look(True, False, True, 0, 0)
OPEN, FULL = Look(False, True, False, 0, 0), Look(True, True, True, 0, 0)


@pytest.mark.parametrize(
    ("looks", "final", "kept"),
    [
        ((OPEN, RIGHT), 0, 0), ((DONE, RIGHT), 8, 0), ((DONE, OPEN), 4, 0), ((RIGHT, DONE), 8, 4),
        ((RIGHT, RIGHT), 8, 8), ((RIGHT, OPEN), 4, 4), ((RIGHT, FULL), 8, 4),
    ],
)  # fmt: skip
def test_a_block_closes_behind_final_ones_and_its_keys_are_kept_behind_right_ones(
    looks: tuple[Look, Look], final: int, kept: int
) -> None:
    made = canvas(0, 16, 4)
    made.opens = TWO
    made.refill()
    assert made.close(looks) == kept
    left = [Span(final, final + 4), Span(final + 4, final + 8)]
    assert made.final == final and spans(made) == left[: 1 if final == 8 else 2]


def test_budgets_of_a_block_run_only_while_all_before_it_is_final() -> None:
    made, policy = canvas(0, 8, 4), ThresholdEdit(tau_edit=0.0, max_post_steps=1)
    made.opens = TWO
    made.refill()
    first, second = made.opened
    nothing = torch.zeros(4, dtype=torch.bool)
    for _ in range(20):
        look = made.look(second, Update(torch.arange(4), ~nothing, nothing), policy)
        assert not made.forced(second, policy)
    assert (second.looks, second.led, second.post, look.done) == (20, 0, 0, False)
    made.close([made.look(first, Update(torch.arange(4), ~nothing, nothing), policy, True), look])
    assert made.look(second, Update(torch.arange(4), nothing, ~nothing), policy).done
