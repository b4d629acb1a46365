# The repair probe on models whose behaviour is known: one that always restores, one that copies, one that always errs.
# Entry points: pytest.
# A model's confidence is set by hand, so that each threshold's effect is exact.
"""Tests of core/repair.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from core.stand_ins import batch_of
from stand_in import StandIn
from torch import Tensor

from hildanext.config.noise import NoiseConfig
from hildanext.core import repair
from hildanext.core.repair import RepairCounts, repair_probe
from hildanext.core.types import Batch

NOISE = NoiseConfig(replace=0.25, vocabulary=20)
LEARN = torch.rand(16, 24, generator=torch.Generator().manual_seed(2)) < 0.8
BATCH = batch_of(torch.randint(0, 19, (16, 24), generator=torch.Generator().manual_seed(1)), LEARN)


class Scripted(StandIn):
    """Puts probability `sure` on one token: the original, the one it sees, or the next id after the original."""

    def __init__(self, habit: str, sure: float) -> None:
        super().__init__(vocab_size=21, mask_id=20)
        self.habit, self.sure = habit, sure

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        seen = {"restore": batch.tokens, "copy": noisy, "err": (batch.tokens + 1) % 20}[self.habit][select]
        others = math.log((1 - self.sure) / 19)
        return torch.full((len(seen), 21), others).scatter_(1, seen[:, None], math.log(self.sure))


def probe(habit: str, sure: float) -> dict[float, RepairCounts]:
    return repair_probe(Scripted(habit, sure), BATCH, 8, torch.Generator().manual_seed(3), NOISE)


def assert_restores() -> None:
    found = probe("restore", 0.7)
    assert [found[tau].repair_rate for tau in (0.0, 0.5, 0.9)] == [1.0, 1.0, 0.0]
    assert all(counts.false_edit_rate == 0.0 for counts in found.values())


def assert_copies() -> None:
    for counts in probe("copy", 0.95).values():
        assert counts.repair_rate == 0.0 and counts.false_edit_rate == 0.0


def assert_errs() -> None:
    counts = probe("err", 0.95)[0.9]
    assert counts.false_edit_rate == 1.0 and counts.repair_rate == 0.0


def assert_counts_the_learnable() -> None:
    counts = probe("copy", 0.5)[0.0]
    assert counts.planted + counts.correct == int(LEARN.sum())
    assert 0.15 < counts.planted / int(LEARN.sum()) < 0.35


def test_a_restoring_model_repairs_everything_below_its_confidence_and_nothing_above():
    assert_restores()


def test_a_copying_model_repairs_nothing_and_breaks_nothing():
    assert_copies()


def test_an_erring_model_changes_every_correct_token_and_repairs_none():
    assert_errs()


def test_planted_and_correct_tokens_are_the_learnable_ones():
    assert_counts_the_learnable()


RIGHT = repair._counts
WRONG_COUNTS = {
    "threshold upside down": (assert_restores, lambda b, s, t, x, w: RIGHT(b, ~s, t, x, w)),
    "no threshold": (assert_restores, lambda b, s, t, x, w: RIGHT(b, s | True, t, x, w)),
    "planted and correct exchanged": (assert_restores, lambda b, s, t, x, w: RIGHT(b, s, t, x, ~w)),
    "same token as an edit": (assert_copies, lambda b, s, t, x, w: RIGHT(b, s, t, x - 1, w)),
    "any edit as a repair": (assert_errs, lambda b, s, t, x, w: RIGHT(b, s, b, x, w)),
    "edits of planted errors only": (assert_errs, lambda b, s, t, x, w: RIGHT(b, s & w, t, x, w)),
}


@pytest.mark.parametrize("fault", WRONG_COUNTS)
def test_wrong_counting_fails_the_model_that_shows_it(fault, monkeypatch):
    check, counts = WRONG_COUNTS[fault]
    monkeypatch.setattr(repair, "_counts", counts)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("fault", ["everywhere", "nowhere"])
def test_errors_planted_everywhere_or_nowhere_fail_the_counts(fault, monkeypatch):
    plant, learn = repair.plant, torch.ones_like(LEARN) if fault == "everywhere" else LEARN
    noise = NOISE if fault == "everywhere" else NoiseConfig(replace=0.0, vocabulary=20)
    changed = replace(BATCH, learn=learn)
    monkeypatch.setattr(repair, "plant", lambda _, model, batch, rng: plant(noise, model, changed, rng))
    with pytest.raises(AssertionError):
        assert_counts_the_learnable()


def test_counts_add_and_an_empty_set_has_no_rate():
    assert RepairCounts(1, 1, 2, 0) + RepairCounts(3, 0, 2, 1) == RepairCounts(4, 1, 4, 1)
    assert math.isnan(RepairCounts(0, 0, 0, 0).repair_rate) and math.isnan(RepairCounts(0, 0, 0, 0).false_edit_rate)
