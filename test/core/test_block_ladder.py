# The ladder of block sizes against the recipe's list, and its arithmetic.
# Entry points: pytest.
# The expected stages are written out by hand from LLaDA2.0 sec. 4.1.
"""Tests of core/block_ladder.py."""

from __future__ import annotations

import pytest

from hildanext.config.train import LadderConfig
from hildanext.core.block_ladder import Ladder
from hildanext.errors import ConfigError


def sizes(ladder: Ladder) -> list[int]:
    return [stage.block for stage in ladder.stages]


def test_the_default_at_4096_is_the_published_ladder() -> None:
    ladder = Ladder.of(LadderConfig(), 4096, 1000)
    assert sizes(ladder) == [1, 4, 32, 64, 4096, 4096, 2048, 1024, 512, 256, 128, 64, 32]
    assert [stage.phase for stage in ladder.stages] == ["warmup"] * 5 + ["stable"] + ["decay"] * 7


def test_larger_sizes_are_clipped_and_repeats_merged() -> None:
    assert sizes(Ladder.of(LadderConfig(), 32, 100)) == [1, 4, 32, 32]
    assert sizes(Ladder.of(LadderConfig(), 64, 100)) == [1, 4, 32, 64, 64, 32]


def test_stages_cover_every_step_once_with_the_shares_asked_for() -> None:
    ladder = Ladder.of(LadderConfig(), 4096, 1000)
    ends = [stage.first + stage.steps for stage in ladder.stages]
    assert [stage.first for stage in ladder.stages] == [0, *ends[:-1]]
    assert ends[-1] == 1000
    by_phase = [sum(s.steps for s in ladder.stages if s.phase == phase) for phase in ("warmup", "stable", "decay")]
    assert by_phase == pytest.approx([300, 400, 300], abs=5)


def test_the_block_of_a_step_needs_only_the_step() -> None:
    ladder = Ladder.of(LadderConfig(), 64, 50)
    walked = [stage.block for stage in ladder.stages for _ in range(stage.steps)]
    assert [ladder.block(step) for step in range(50)] == walked
    assert ladder.last == 32


def test_the_fewest_steps_give_each_stage_one() -> None:
    assert [stage.steps for stage in Ladder.of(LadderConfig(), 64, 6).stages] == [1] * 6
    with pytest.raises(ConfigError, match="6 stages"):
        Ladder.of(LadderConfig(), 64, 5)


def test_a_phase_without_share_is_left_out() -> None:
    assert sizes(Ladder.of(LadderConfig(shares=(0, 1, 1)), 128, 100)) == [128, 64, 32]


@pytest.mark.parametrize("wrong", [LadderConfig(warmup=(1, 3)), LadderConfig(fixed=5), LadderConfig(decay_to=24)])
def test_a_size_that_does_not_divide_is_refused_with_the_divisors(wrong: LadderConfig) -> None:
    with pytest.raises(ConfigError, match=r"do not divide the window 64.*\[1, 2, 4, 8, 16, 32, 64\]"):
        Ladder.of(wrong, 64, 100)


def test_a_fixed_size_is_one_stage() -> None:
    assert sizes(Ladder.of(LadderConfig(fixed=16), 64, 10)) == [16]
    assert sizes(Ladder.of(LadderConfig(fixed=0), 64, 10)) == [64]
    with pytest.raises(ValueError, match="step 10 of 10"):
        Ladder.of(LadderConfig(fixed=16), 64, 10).block(10)
