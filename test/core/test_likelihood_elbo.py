# The block ELBO against enumeration: over orders, over mask sets, over all sequences; and against Monte Carlo.
# Entry points: pytest.
# The table model's log-probabilities are also available by hand, which is what the oracles use.
"""Tests of core/elbo.py."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch
from core.stand_ins import LayerModel, TableModel, UniformModel, batch_of

from hildanext.config.noise import NoiseConfig
from hildanext.core import elbo
from hildanext.core.elbo import Estimate, block_elbo, exact_block_elbo, sampled_block_elbo
from hildanext.core.likelihood import token_nll
from hildanext.core.noise import corrupt


def order_probabilities(model: TableModel, row: list[int]) -> list[list[float]]:
    """For each block: log p(block's scored tokens) in every order; position 0 of the row is given."""
    blocks = []
    for start in range(0, len(row), model.block):
        places = [place for place in range(model.block) if start + place > 0]
        logs = [_order_log(model, row, start, order) for order in itertools.permutations(places)]
        blocks.append(logs)
    return blocks


def _order_log(model: TableModel, row: list[int], start: int, order: tuple[int, ...]) -> float:
    noisy = [model.mask_id if place in order else row[start + place] for place in range(model.block)]
    total = 0.0
    for place in order:
        total += model.log_probability(row[:start], noisy, place, row[start + place])
        noisy[place] = row[start + place]
    return total


def order_average(model: TableModel, row: list[int]) -> float:
    return -sum(sum(logs) / len(logs) for logs in order_probabilities(model, row))


def mixture_nll(model: TableModel, row: list[int]) -> float:
    return -sum(math.log(sum(map(math.exp, logs)) / len(logs)) for logs in order_probabilities(model, row))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@cache
def all_rows(tokens: int, length: int) -> torch.Tensor:
    tail = itertools.product(range(tokens), repeat=length - 1)
    return torch.tensor([(0, *row) for row in tail])


@pytest.mark.parametrize("block", [1, 2, 4])
def test_enumeration_equals_the_average_over_all_orders(block):
    model = TableModel(3, block)
    for row in torch.randint(0, 3, (3, 8), generator=rng()):
        found = block_elbo(model, batch_of(row[None]), block, rng())
        assert abs(found.nats - order_average(model, row.tolist())) < 1e-10
        assert (found.tokens, found.standard_error) == (7, 0.0)


def order_average_by_recursion(model: TableModel, row: list[int], masked: frozenset[int]) -> float:
    """Mean over the orders of filling `masked` in a one-block row: each next place is equally likely."""
    if not masked:
        return 0.0
    key = (tuple(row), masked)
    if key not in RECURSION:
        noisy = [model.mask_id if place in masked else token for place, token in enumerate(row)]
        parts = [
            order_average_by_recursion(model, row, masked - {place})
            - model.log_probability([], noisy, place, row[place])
            for place in masked
        ]
        RECURSION[key] = sum(parts) / len(parts)
    return RECURSION[key]


RECURSION: dict[tuple[tuple[int, ...], frozenset[int]], float] = {}


def test_enumeration_of_a_block_of_eight_equals_the_recursion_over_orders():
    model = TableModel(2, 8, prefixes=1)
    row = torch.randint(0, 2, (1, 8), generator=rng())
    wanted = order_average_by_recursion(model, row[0].tolist(), frozenset(range(1, 8)))
    assert abs(block_elbo(model, batch_of(row), 8, rng()).nats - wanted) < 1e-10


def test_a_wrong_pattern_weight_fails_the_order_average(monkeypatch):
    right = elbo._pattern_weight
    monkeypatch.setattr(elbo, "_pattern_weight", lambda pattern, size: right(pattern, size) * (pattern.bit_count() < 3))
    model, row = TableModel(3, 4), torch.randint(0, 3, (1, 8), generator=rng())
    assert abs(block_elbo(model, batch_of(row), 4, rng()).nats - order_average(model, row[0].tolist())) > 1e-3


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
    right = elbo._pattern_weight
    monkeypatch.setattr(elbo, "_pattern_weight", lambda pattern, size: right(pattern, size) * (pattern != 3))
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


@pytest.mark.parametrize("block", [2, 4])
def test_exact_count_sampling_agrees_with_enumeration_within_four_standard_errors(block):
    model, batch = TableModel(3, block), batch_of(torch.randint(0, 3, (40, 8), generator=rng()))
    exact = exact_block_elbo(model, batch, block)
    found = sampled_block_elbo(model, batch, block, rng(), 300)
    assert abs(found.nats - exact.nats) <= 4 * found.standard_error
    assert found.tokens == exact.tokens == 40 * 7
    wrong = Estimate(found.nats * 1.2, found.tokens, found.standard_error)
    assert abs(wrong.nats - exact.nats) > 4 * wrong.standard_error


def test_the_reported_standard_error_covers_the_spread_of_repeated_estimates():
    model, batch = TableModel(3, 4), batch_of(torch.randint(0, 3, (4, 8), generator=rng()))
    shared = rng()
    runs = [sampled_block_elbo(model, batch, 4, shared, 8) for _ in range(120)]
    spread = torch.tensor([run.nats for run in runs]).std()
    claimed = torch.tensor([run.standard_error for run in runs]).mean()
    assert 0.3 * float(claimed) < float(spread) < 1.15 * float(claimed)


@pytest.mark.parametrize(
    ("schedule", "unit"), [("linear", "block"), ("cosine", "sequence"), ("power", "block"), ("sigmoid", "block")]
)
def test_bernoulli_masks_with_every_schedules_weight_estimate_the_same_bound(schedule, unit):
    model, row = TableModel(3, 4), torch.randint(0, 3, (1, 8), generator=rng())
    learn = torch.ones(1, 8, dtype=torch.bool)
    learn[0, 0] = False
    exact = exact_block_elbo(model, batch_of(row, learn), 4)
    batch = batch_of(row.expand(6000, 8), learn.expand(6000, 8))
    (view,) = corrupt(NoiseConfig(replace=0.0, schedule=schedule, unit=unit, minimum=1e-6), model, batch, 4, rng())
    with torch.no_grad():
        nll = token_nll(model, view.tokens, batch, 4, view.masked).nll
    sums = torch.zeros(6000, dtype=torch.float64)
    sums.index_add_(0, view.masked.nonzero()[:, 0], nll * view.elbo[view.masked])
    assert abs(float(sums.mean()) - exact.nats) <= 4 * float(sums.std()) / math.sqrt(6000)


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
    right = elbo._pattern_weight
    monkeypatch.setattr(elbo, "_pattern_weight", lambda pattern, size: right(pattern, size) * (1 + 1e-6))
    with pytest.raises(AssertionError):
        assert_sum_of_separate_forwards(LayerModel())


def assert_block_one_mean(weigh) -> None:
    """weigh(view) [B, L]: the weight of a masked position."""
    model, row = TableModel(3, 1), torch.randint(0, 3, (1, 8), generator=rng())
    exact = exact_block_elbo(model, batch_of(row), 1)
    learn = torch.ones(4000, 8, dtype=torch.bool)
    learn[:, 0] = False
    batch = batch_of(row.expand(4000, 8), learn)
    (view,) = corrupt(NoiseConfig(replace=0.0), model, batch, 1, rng())
    with torch.no_grad():
        nll = token_nll(model, view.tokens, batch, 1, view.masked).nll
    sums = torch.zeros(4000, dtype=torch.float64)
    sums.index_add_(0, view.masked.nonzero()[:, 0], nll * weigh(view)[view.masked])
    assert abs(float(sums.mean()) - exact.nats) <= 4 * float(sums.std()) / math.sqrt(4000)


def test_block_one_with_random_rates_has_the_exact_mean():
    assert_block_one_mean(lambda view: view.elbo)


WRONG_WEIGHTS = {
    "none": lambda view: torch.ones_like(view.elbo),
    "twice": lambda view: 2 * view.elbo,
    "of the neighbour": lambda view: view.elbo.roll(1, dims=1),
    "of the complement": lambda view: 1 / (1 - view.rate).clamp(min=1e-3),
}


@pytest.mark.parametrize("fault", WRONG_WEIGHTS)
def test_another_weight_than_one_over_the_rate_fails_the_mean_of_block_one(fault):
    with pytest.raises(AssertionError):
        assert_block_one_mean(WRONG_WEIGHTS[fault])


@pytest.mark.parametrize("block", [1, 4, 8, 0])
def test_a_uniform_model_scores_log_v_per_token(block):
    batch = batch_of(torch.randint(0, 8, (3, 16), generator=rng()))
    found = block_elbo(UniformModel(9), batch, block, rng(), samples=4 if block == 0 else 0)
    assert abs(found.nats_per_token - math.log(8)) < 1e-5


def test_documents_and_prompts_cut_blocks_and_are_enumerated_by_their_own_size():
    model = LayerModel()
    tokens = torch.randint(0, 11, (1, 8), generator=rng())
    docs, learn = torch.tensor([[0] * 3 + [1] * 5]), torch.tensor([[True] * 7 + [False]])
    packed = block_elbo(model, batch_of(tokens, learn, docs), 4, rng())
    many = sampled_block_elbo(model, batch_of(tokens, learn, docs), 4, rng(), 400)
    assert packed.tokens == 5
    assert abs(packed.nats - many.nats) <= 4 * many.standard_error


def test_exact_refuses_blocks_it_cannot_enumerate_and_one_sample_has_no_error():
    batch = batch_of(torch.randint(0, 8, (3, 16), generator=rng()))
    with pytest.raises(ValueError, match="give samples"):
        block_elbo(UniformModel(9), batch, 16, rng())
    assert math.isnan(block_elbo(UniformModel(9), batch, 16, rng(), samples=1).standard_error)
    assert Estimate(1.0, 2, 3.0) + Estimate(2.0, 3, 4.0) == Estimate(3.0, 5, 5.0)
