# What the block ELBO bounds: the true NLL of every sequence of a small model; block 1; documents; uniform models.
# Entry points: pytest.
# The table model's log-probabilities are also available by hand, which is what the oracles use. Estimators of the
# bound have a file of their own, test_elbo_estimates.py.
"""Tests of core/likelihood.py."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch
from core.checks import rng
from core.orders import mixture_nll
from core.stand_ins import LayerModel, TableModel, UniformModel, batch_of

from hildanext.core import likelihood
from hildanext.core.likelihood import Estimate, autoregressive_nll, block_elbo, sampled_block_elbo
from hildanext.core.noise import rank_in_unit

RIGHT, PER_TOKEN = likelihood._pattern_weight, likelihood.linear_cross_entropy


@cache
def all_rows(tokens: int, length: int) -> torch.Tensor:
    tail = itertools.product(range(tokens), repeat=length - 1)
    return torch.tensor([(0, *row) for row in tail])


def assert_normalised(model: TableModel, rows: torch.Tensor) -> None:
    assert abs(sum(math.exp(-mixture_nll(model, row.tolist())) for row in rows) - 1) < 1e-12


def gaps(model: TableModel, rows: torch.Tensor) -> list[float]:
    """Bound less true NLL of every row."""
    return [
        block_elbo(model, batch_of(row[None]), model.block, rng()).nats - mixture_nll(model, row.tolist())
        for row in rows
    ]


def assert_bounds(model: TableModel, rows: torch.Tensor) -> None:
    found = gaps(model, rows)
    assert min(found) >= -1e-12 and max(found) > 1e-3


def assert_tight(model: TableModel, rows: torch.Tensor) -> None:
    assert max(map(abs, gaps(model, rows))) < 1e-10


@pytest.mark.parametrize("block", [2, 3])
def test_the_bound_lies_above_the_true_nll_of_every_sequence_of_a_normalised_model(block):
    model, rows = TableModel(3, block), all_rows(3, 6)
    assert_normalised(model, rows)
    assert_bounds(model, rows)


def test_the_bound_is_tight_where_all_orders_agree():
    assert_tight(TableModel(3, 3, agree=True), all_rows(3, 6)[::9])


def test_a_model_that_loses_probability_fails_the_sum_over_sequences(monkeypatch):
    right = TableModel.log_probability
    monkeypatch.setattr(TableModel, "log_probability", lambda *a: right(*a) - 0.01)
    with pytest.raises(AssertionError):
        assert_normalised(TableModel(3, 2), all_rows(3, 4))


def test_a_bound_that_leaves_out_a_mask_set_lies_below_some_sequence_and_is_not_tight(monkeypatch):
    right = likelihood._pattern_weight
    monkeypatch.setattr(likelihood, "_pattern_weight", lambda pattern, size: right(pattern, size) * (pattern != 3))
    with pytest.raises(AssertionError):
        assert_bounds(TableModel(3, 3), all_rows(3, 6)[::27])
    with pytest.raises(AssertionError):
        assert_tight(TableModel(3, 3, agree=True), all_rows(3, 6)[::27])


def test_a_model_whose_orders_agree_shows_no_gap_and_one_whose_orders_disagree_is_not_tight():
    rows = all_rows(3, 6)[::27]
    with pytest.raises(AssertionError):
        assert_bounds(TableModel(3, 3, agree=True), rows)
    with pytest.raises(AssertionError):
        assert_tight(TableModel(3, 3), rows)


def test_the_reported_standard_error_covers_the_spread_of_repeated_estimates():
    model, batch = TableModel(3, 4), batch_of(torch.randint(0, 3, (4, 8), generator=rng()))
    shared = rng()
    runs = [sampled_block_elbo(model, batch, 4, shared, 8) for _ in range(120)]
    spread = torch.tensor([run.nats for run in runs]).std()
    claimed = torch.tensor([run.standard_error for run in runs]).mean()
    assert 0.3 * float(claimed) < float(spread) < 1.15 * float(claimed)


def assert_sum_of_separate_forwards(model: LayerModel) -> None:
    row, total = torch.randint(0, 11, (10,), generator=rng()), 0.0
    for i in range(1, 10):
        tokens = torch.cat([row[:i], torch.tensor([model.mask_id])])[None]
        mask = torch.ones(i + 1, i + 1, dtype=torch.bool).tril()[None, None]
        state = model.body(tokens, torch.arange(i + 1)[None], mask)[0, i]
        total -= float((state @ model.head()[:11].T).log_softmax(0)[row[i]].detach())
    found = block_elbo(model, batch_of(row[None]), 1, rng())
    assert abs(found.nats - total) < 1e-9
    assert block_elbo(model, batch_of(row[None]), 1, rng(), samples=5) == found


def test_block_one_all_masked_is_the_sum_of_separate_forwards():
    assert_sum_of_separate_forwards(LayerModel())


class Leaky(LayerModel):
    """Its noisy positions hold a hundredth of the clean token that they should predict."""

    def body(self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden, length = super().body(tokens, positions, mask), tokens.shape[1] // 2
        if mask.shape[-1] != 20:
            return hidden
        return torch.cat([hidden[:, :length] + hidden[:, length:] / 100, hidden[:, length:]], 1)


class Late(LayerModel):
    """Its noisy half stands one place to the right of its clean half."""

    def body(self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        late = torch.arange(positions.shape[1]) < positions.shape[1] // 2
        return super().body(tokens, positions + (late if mask.shape[-1] == 20 else 0), mask)


@pytest.mark.parametrize("fault", [Leaky, Late])
def test_a_model_that_sees_its_answer_or_misplaces_it_fails_the_separate_forwards(fault):
    with pytest.raises(AssertionError):
        assert_sum_of_separate_forwards(fault())


def test_another_weight_than_one_fails_the_separate_forwards(monkeypatch):
    right = likelihood._pattern_weight
    monkeypatch.setattr(likelihood, "_pattern_weight", lambda pattern, size: right(pattern, size) * (1 + 1e-6))
    with pytest.raises(AssertionError):
        assert_sum_of_separate_forwards(LayerModel())


def assert_scores_log_v() -> None:
    batch = batch_of(torch.randint(0, 8, (3, 16), generator=rng()))
    for block, samples in ((1, 0), (2, 0), (4, 0), (8, 0), (8, 4), (16, 4), (0, 4)):
        found = block_elbo(UniformModel(9), batch, block, rng(), samples=samples)
        assert found.tokens == 45 and abs(found.nats_per_token - math.log(8)) < 1e-5


def test_a_uniform_model_scores_log_v_per_token():
    assert_scores_log_v()


LOG_V_FAULTS = {
    "a mask set left out": ("_pattern_weight", lambda pattern, size: RIGHT(pattern, size) * (pattern != 3)),
    "[MASK] among the tokens": (
        "linear_cross_entropy",
        lambda features, head, targets, exclude: PER_TOKEN(features, head, targets),
    ),
    "first tokens scored": ("scored_positions", lambda batch, mask_id: batch.learn),
    "masked more than weighed": ("rank_in_unit", lambda *given: rank_in_unit(*given) - 1),
}


@pytest.mark.parametrize("fault", LOG_V_FAULTS)
def test_other_weights_tokens_or_masks_do_not_score_log_v(fault, monkeypatch):
    monkeypatch.setattr(likelihood, *LOG_V_FAULTS[fault])
    with pytest.raises(AssertionError):
        assert_scores_log_v()


def test_documents_and_prompts_cut_blocks_and_are_enumerated_by_their_own_size():
    model = LayerModel()
    tokens = torch.randint(0, 11, (1, 8), generator=rng())
    docs, learn = torch.tensor([[0] * 3 + [1] * 5]), torch.tensor([[True] * 7 + [False]])
    packed = block_elbo(model, batch_of(tokens, learn, docs), 4, rng())
    many = sampled_block_elbo(model, batch_of(tokens, learn, docs), 4, rng(), 400)
    assert packed.tokens == 5
    assert abs(packed.nats - many.nats) <= 4 * many.standard_error


@pytest.mark.parametrize("score", [lambda *given: block_elbo(*given, 4, rng()), autoregressive_nll])
def test_the_nats_of_documents_are_those_of_each_alone(score):
    model, tokens = LayerModel(), torch.randint(0, 11, (2, 8), generator=rng())
    learn = torch.ones(2, 8, dtype=torch.bool)
    learn[1, 4:] = False
    found = score(model, batch_of(tokens, learn, torch.tensor([[0] * 4 + [1] * 4, [0] * 4 + [1] * 4])))
    parts = (tokens[:1, :4], tokens[:1, 4:], tokens[1:, :4])
    alone = [score(model, batch_of(part)) for part in parts]
    assert [count for _, count in found.documents] == [3, 3, 3] == [one.tokens for one in alone]
    assert [nats for nats, _ in found.documents] == pytest.approx([one.nats for one in alone], rel=1e-5)
    assert sum(nats for nats, _ in found.documents) == pytest.approx(found.nats)


def test_exact_refuses_blocks_it_cannot_enumerate_and_one_sample_has_no_error():
    batch = batch_of(torch.randint(0, 8, (3, 16), generator=rng()))
    with pytest.raises(ValueError, match="give samples"):
        block_elbo(UniformModel(9), batch, 16, rng())
    assert math.isnan(block_elbo(UniformModel(9), batch, 16, rng(), samples=1).standard_error)
    assert Estimate(1.0, 2, 3.0) + Estimate(2.0, 3, 4.0) == Estimate(3.0, 5, 5.0)
