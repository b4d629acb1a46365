# Every check of the decoder fails when a realistic error is planted in the code it guards.
# Entry points: the tests; ERRORS pairs a plant with the check that must notice it.
# Checks that take no subject are the tests themselves, called again with the error in place.
"""Planted errors of decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from decoding import check_limits, checks, plants, test_engine, test_policies, test_statistics
from decoding.subjects import Subject, opened

from hildanext.decoding.statistics import Sampling

ONE_LEFT = Sampling(1.0, top_k=1)


def _ways(subject: Subject) -> None:
    checks.every_way_of_caching_agrees(subject, "no editing", "greedy", (1, 3, 5, 7, 9, 17))


def _oracle(subject: Subject) -> None:
    checks.tokens_are_the_oracles(subject, "edit freely", "greedy")


def _sampled_oracle(subject: Subject) -> None:
    checks.tokens_are_the_oracles(subject, "no editing", "sampled")


def _keys(subject: Subject) -> None:
    checks.committed_keys_are_those_of_one_forward(subject, "no editing", "greedy")


def _company(subject: Subject) -> None:
    checks.company_changes_nothing(subject, 1)


def _preempted(subject: Subject) -> None:
    checks.company_changes_nothing(subject, 10, preempt=0.3, requests=4, fuse=False)


def _bounds(subject: Subject) -> None:
    checks.forwards_are_bounded(subject, "no editing", "greedy")
    checks.forwards_are_bounded(subject, "edit freely", "greedy")


def _ties(subject: Subject) -> None:
    test_policies.test_equal_confidences_are_filled_from_the_left("threshold_edit")


def _prompt(subject: Subject) -> None:
    check_limits.prompts_are_never_edited(subject)


def _plain(test: Callable[..., None], *arguments: Any) -> Callable[[Subject], None]:
    return lambda subject: test(*arguments)


ERRORS: tuple[tuple[Callable[[Any], None], Callable[[Subject], None]], ...] = (
    (plants.keys_of_the_changing_forward, _ways), (plants.keys_of_the_changing_forward, _keys),
    (plants.keys_of_the_changing_forward, _oracle), (plants.positions_of_the_window, _ways),
    (plants.positions_of_the_window, _oracle),
    (plants.block_size_of_the_first_row, _company), (plants.randomness_of_the_queue, _company),
    (plants.randomness_without_the_step, _sampled_oracle), (plants.randomness_of_the_forward_count, _preempted),
    (plants.steps_forgotten_by_preemption, _preempted), (plants.moved_slot_without_its_keys, _company),
    (plants.cancel_without_release, checks.cancel_frees_at_once),
    (plants.memory_kept_when_empty, checks.cancel_frees_at_once),
    (plants.streams_that_end_with_the_queue, checks.streams_keep_their_events),
    (plants.separate_commits, _bounds), (plants.separate_commits, check_limits.limits_of_tau_mask_give_exact_forwards),
    (plants.mask_left_in_the_normaliser, check_limits.a_model_that_prefers_the_mask_decodes_as_if_it_did_not),
    (plants.thresholds_that_include_equality,
     _plain(test_policies.test_a_threshold_is_strict_and_one_means_one_token_per_step)),
    (plants.ties_by_topk, _ties), (plants.nothing_forced, _bounds), (plants.nothing_forced, _oracle),
    (plants.leftmost_instead_of_best, check_limits.tau_mask_one_is_the_static_quota),
    (plants.remainder_last, _plain(test_policies.test_quota_tables)),
    (plants.remainder_last, _plain(test_policies.test_static_quota_takes_the_most_confident)),
    (plants.one_mask_too_many,
     _plain(test_policies.test_factor_is_the_longest_prefix_and_accepts_more_with_a_larger_factor)),
    (plants.every_leader, _plain(test_policies.test_hierarchy_takes_one_per_run_the_confident_ones_and_the_best)),
    (plants.credit_at_weight_zero, check_limits.zero_credit_is_the_plain_threshold),
    (plants.everything_editable, _prompt),
    (plants.no_edits, _plain(test_engine.test_editing_repairs_a_wrong_token_and_without_editing_it_stays)),
    (plants.edits_of_hidden_positions, _oracle),
    (plants.budget_of_one_more, _plain(test_engine.test_an_oscillating_model_stops_after_exactly_the_post_budget)),
    (plants.budget_of_one_more, check_limits.without_post_steps_editing_is_free), (plants.budget_of_one_more, _bounds),
    (plants.no_edits, check_limits.without_post_steps_editing_is_free),
    (plants.edits_above_one_minus_tau, check_limits.tau_edit_one_only_looks),
    (plants.fixed_points_ignored, check_limits.free_editing_ends_at_a_fixed_point_or_its_budget),
    (plants.coarse_uniform_numbers, _plain(test_statistics.test_samples_follow_the_tempered_softmax, 1.0)),
    (plants.certainty_of_the_likeliest, _sampled_oracle), (plants.certainty_behind_the_cuts, _sampled_oracle),
    (plants.certainty_of_the_likeliest,
     _plain(test_statistics.test_an_unlikely_drawn_token_is_not_certain_because_another_is)),
    (plants.ties_beyond_top_k,
     _plain(test_statistics.test_one_token_left_or_no_warmth_is_the_greedy_token_with_the_greedy_numbers, ONE_LEFT)),
    (plants.entropy_in_bits, _plain(test_statistics.test_greedy_statistics_equal_the_softmax_without_the_mask)),
    (plants.dreams_guidance, _plain(test_statistics.test_guidance_is_lladas_and_one_more_than_dreams)),
    (plants.block_after_the_end_token, check_limits.text_ends_where_it_must),
    (plants.length_rounded_to_blocks, check_limits.text_ends_where_it_must),
    (plants.ids_of_held_text, check_limits.text_ends_where_it_must),
)  # fmt: skip


@pytest.fixture(scope="module")
def subject(random_model: Any) -> Subject:
    return opened(random_model, "llama")


@pytest.mark.parametrize(("plant", "check"), ERRORS)
def test_a_planted_error_is_noticed(subject: Subject, plant: Any, check: Any, monkeypatch: Any) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(subject)
