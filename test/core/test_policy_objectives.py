# Objectives of reinforcement learning against enumeration: bounds, fixed points, gradients, the exact policy gradient.
# Entry points: pytest.
# Toys of three to eight tokens. The constant-memory backward is judged by the whole graph, AGRPO by the derivative of
# the expected reward over every order and every text.
"""Tests of core/policy_views.py, core/policy_objective.py and core/policy_objectives."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from core.checks import assert_mean_is, rng
from core.orders import order_average_by_recursion
from core.stand_ins import LayerModel, TableModel, batch_of
from torch import Tensor

from hildanext.core import policy_objective, policy_views
from hildanext.core.noise import units
from hildanext.core.policy_objective import Known, PolicyObjective, advantages, kl
from hildanext.core.policy_views import (
    Played,
    elbo_views,
    exact_views,
    log_probabilities,
    round_views,
    step_views,
    support_ids,
)
from hildanext.core.preference import sequence_bounds
from hildanext.core.types import About
from hildanext.registry import build, names

NAMES = names("policy_objectives")
ROWS, LENGTH, BLOCK = 4, 12, 4
REFERENCED = {"kl_weight": 0.5}


def made(name: str, **fields: Any) -> PolicyObjective:
    objective: PolicyObjective = build("policy_objectives", {"type": name, **fields})
    about = About(11, (), torch.device("cpu"), lambda path: LayerModel())
    return objective.prepare(about)


def played(seed: int = 0) -> Played:
    """Four answers behind prompts of 4, of 8, 7, 6, 5 tokens, decoded in up to three rounds a block."""
    draw = rng(seed)
    tokens = torch.randint(0, 11, (ROWS, LENGTH), generator=draw)
    index = torch.arange(LENGTH)[None]
    stops = LENGTH - torch.arange(ROWS)[:, None]
    learn = (index >= 4) & (index < stops)
    steps = torch.where(index >= 4, torch.randint(0, 3, (ROWS, LENGTH), generator=draw), -1)
    clean = torch.where(index < stops, tokens, 11)
    advantage = torch.tensor([1.0, -0.5, 2.0, -1.0], dtype=torch.float64)
    surprisal = torch.rand(ROWS, LENGTH, generator=draw, dtype=torch.float64) * 3
    return Played(batch_of(clean, learn, ids=(3, 1, 8, 2)), tokens, steps, surprisal, advantage, torch.ones(ROWS) > 0)


def known(objective: PolicyObjective, given: Played, old: Any, reference: Any, more: bool = False) -> Known:
    """What a rollout stores; more: the old policy saw more masks than those that are learned on."""
    views = theirs = objective.views(old, given, BLOCK, rng())
    if more:
        theirs = tuple(replace(view, tokens=view.tokens.masked_fill(given.batch.learn, 11)) for view in views)
    with torch.no_grad():
        first = tuple(objective.score(old, given, BLOCK, view) for view in theirs)
        second = tuple(objective.score(reference, given, BLOCK, view) for view in views)
    return Known(views, first, second if objective.compares else None)


def gradient(model: LayerModel, objective: PolicyObjective, given: Played, stored: Known) -> dict[str, Tensor]:
    """Of the loss divided by its normaliser, one backward per view; and its value, parts and counts summed."""
    model.zero_grad()
    reports = []
    for report in objective.losses(model, given, BLOCK, stored):
        report.total.backward()
        reports.append(report)
    rows = sum(float(report.normaliser) for report in reports)
    found = {name: p.grad / rows for name, p in model.named_parameters() if p.grad is not None}
    sums = {
        name: sum(float(r.parts[name]) for r in reports if name in r.parts)
        / max(1e-9, sum(float(r.counts[name]) for r in reports if name in r.counts))
        for name in {name for r in reports for name in r.parts}
    }
    return found | {"loss": torch.tensor(sum(float(r.total.detach()) for r in reports) / rows), **sums}


def moved(scale: float = 0.02) -> LayerModel:
    model = LayerModel()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += scale * torch.randn(parameter.shape, generator=rng(number), dtype=parameter.dtype)
    return model


def assert_at_rest(name: str, more: bool = False) -> None:
    """Ratio 1, KL 0, nothing clipped before the first update, whatever the clip."""
    fields = {} if name == "dpo" else {**REFERENCED, **({} if name == "wd1" else {"clip": 1e-12})}
    objective, given, model = made(name, **fields), played(), LayerModel()
    found = gradient(model, objective, given, known(objective, given, model, model, more))
    for part in ("kl", "clipped", "moved", "margin"):
        assert float(found.get(part, 0.0)) == 0.0, part
    expected = math.log(2) if name == "dpo" else None
    if name in ("espo", "ebpo"):
        expected = -float(given.advantage.mean())
    if expected is not None:
        assert abs(float(found["loss"]) - expected) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_before_the_first_update_the_ratio_is_one_and_the_kl_is_zero(name: str) -> None:
    assert_at_rest(name)


@pytest.mark.parametrize("name", ["espo", "ebpo", "agrpo", "trace"])
def test_an_old_policy_on_masks_of_its_own_is_seen(name: str) -> None:
    with pytest.raises(AssertionError):
        assert_at_rest(name, more=True)


def whole_graph(model: LayerModel, objective: Any, given: Played, stored: Known) -> dict[str, Tensor]:
    """The same gradient with the graphs of all views alive at once."""
    model.zero_grad()
    now = sequence_bounds(model, given.batch, BLOCK, stored.views)

    def mean(scores: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([policy_views.by_row(v, s) for v, s in zip(stored.views, scores, strict=True)]).mean(0)

    reference = None if stored.reference is None else mean(stored.reference)
    rows, _ = objective.row_losses(now, mean(stored.old), reference, given)
    kept = given.kept.double()
    ((rows * kept).sum() / kept.sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_constant_memory_is_exact(name: str) -> None:
    fields = {} if name == "dpo" else {**REFERENCED, **({} if name == "wd1" else {"clip": 0.5})}
    objective, given = made(name, draws=2, **fields), replace(played(), kept=torch.tensor([True, True, False, True]))
    if name == "dpo":
        given = replace(given, kept=torch.ones(ROWS) > 0)
    model, stored = moved(), known(objective, given, LayerModel(), moved(0.05))
    found, wanted = gradient(model, objective, given, stored), whole_graph(model, objective, given, stored)
    assert any(float(slope.abs().max()) > 1e-4 for slope in wanted.values())
    for parameter, slope in wanted.items():
        assert torch.allclose(found[parameter], slope, atol=1e-7), parameter


@pytest.mark.parametrize("name", ["espo", "ebpo", "wd1", "dpo"])
def test_a_backward_per_view_is_the_gradient_of_the_whole_graph(name: str) -> None:
    assert_constant_memory_is_exact(name)


def test_a_slope_taken_from_one_view_alone_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = policy_objective._mean
    monkeypatch.setattr(policy_objective, "_mean", lambda views, values: kept(views[:1], values[:1]))
    with pytest.raises(AssertionError):
        assert_constant_memory_is_exact("espo")


def six() -> tuple[TableModel, list[int]]:
    return TableModel(2, 6, prefixes=1), [1, 0, 0, 1, 1, 0]


def estimates(model: TableModel, row: list[int], seed: int, count: int, **how: Any) -> Tensor:
    batch = batch_of(torch.tensor([row] * count))
    views = elbo_views(model, batch, units("sequence", batch, 6), rng(seed), how["draws"], how["coupled"])
    return sequence_bounds(model, batch, 6, views).detach()


@pytest.mark.parametrize(("draws", "coupled"), [(1, True), (2, True), (1, False), (3, False)])
def test_every_estimator_has_the_mean_of_the_enumerated_bound(draws: int, coupled: bool) -> None:
    model, row = six()
    wanted = -order_average_by_recursion(model, row, frozenset(range(6)), {})
    assert_mean_is(estimates(model, row, 0, 3000, draws=draws, coupled=coupled), wanted)
    batch = batch_of(torch.tensor([row]))
    exact = sequence_bounds(model, batch, 6, exact_views(model, batch, 6))
    assert abs(float(exact.detach()) - wanted) < 1e-9
    with pytest.raises(AssertionError):
        assert_mean_is(estimates(model, row, 0, 3000, draws=draws, coupled=coupled) * 7 / 6, wanted)


def test_one_count_per_answer_and_one_per_block_estimate_the_same_bound_with_less_spread() -> None:
    model, row = TableModel(3, 2), [0, 2, 1, 1, 0, 2, 2, 1]
    batch = batch_of(torch.tensor([row] * 4000))
    one = batch_of(torch.tensor([row]))
    wanted = float(sequence_bounds(model, one, 2, exact_views(model, one, 2)).detach())
    spread = {}
    for kind in ("sequence", "block"):
        views = elbo_views(model, batch, units(kind, batch, 2), rng(), 1, False)
        found = sequence_bounds(model, batch, 2, views).detach()
        assert_mean_is(found, wanted)
        spread[kind] = float(found.std())
    assert spread["block"] < 0.7 * spread["sequence"]


def spreads() -> dict[str, float]:
    """Standard deviation of the difference of two near models' bounds: masks shared, coupled too, or one's own."""
    (model, row), near = six(), TableModel(2, 6, prefixes=1)
    with torch.no_grad():
        near.table += 0.1 * torch.randn(near.table.shape, generator=rng(3), dtype=torch.float64)
    alone = {"draws": 2, "coupled": False}
    ours = estimates(model, row, 0, 3000, **alone)
    coupled = estimates(model, row, 0, 3000, draws=1, coupled=True)
    return {
        "independent": float((ours - estimates(near, row, 1, 3000, **alone)).std()),
        "shared": float((ours - estimates(near, row, 0, 3000, **alone)).std()),
        "coupled": float((coupled - estimates(near, row, 0, 3000, draws=1, coupled=True)).std()),
    }


def test_shared_masks_leave_a_fraction_of_the_spread() -> None:
    found = spreads()
    assert found["shared"] < found["independent"] / 4 and found["coupled"] < found["independent"] / 4


def assert_rounds_cover(views: Any, given: Played) -> None:
    """Each learned token is scored once, in a state where it is hidden and what came before it stands."""
    seen = torch.stack([view.m2t for view in views]).sum(0)
    assert torch.equal(seen, given.batch.learn.long())
    for number, view in enumerate(views):
        hidden = view.tokens == 11
        assert torch.equal(hidden, given.steps >= number)
        assert torch.equal(view.tokens[~hidden], given.canvas[~hidden])


def test_the_rounds_of_an_answer_cover_each_token_once() -> None:
    given = played()
    views = round_views(LayerModel(), given)
    assert_rounds_cover(views, given)
    for fault in (views[1:], (*views, views[0]), views[::-1]):
        with pytest.raises(AssertionError):
            assert_rounds_cover(fault, given)


@pytest.mark.parametrize("by_surprisal", [False, True])
def test_sampled_rounds_weigh_so_that_each_token_counts_once_in_the_mean(by_surprisal: bool) -> None:
    given, model = played(), LayerModel()
    unit = units("block", given.batch, BLOCK)
    total = torch.zeros(400, ROWS, LENGTH, dtype=torch.float64)
    for seed in range(400):
        views = step_views(model, given, unit, rng(seed), 2, by_surprisal)
        total[seed] = torch.stack([view.m2t * view.elbo for view in views]).mean(0)
    for row, place in given.batch.learn.nonzero().tolist():
        assert_mean_is(total[:, row, place], 1.0)
    assert not total[:, ~given.batch.learn].any()


TOY = TableModel(3, 3, prefixes=1)


def toy() -> tuple[Played, Tensor, Tensor]:
    """Every order and text of three places and three words: as decoded answers, their rewards, their log p [162]."""
    cases = [
        (order, text) for order in itertools.permutations(range(3)) for text in itertools.product(range(3), repeat=3)
    ]
    tokens = torch.tensor([text for _, text in cases])
    steps = torch.tensor([[order.index(place) for place in range(3)] for order, _ in cases])
    reward = torch.tensor([float(sum(text) ** 2 % 5 + (text[0] == text[2])) for _, text in cases], dtype=torch.float64)
    total = torch.zeros(len(cases), dtype=torch.float64)
    for number in range(3):
        noisy = tokens.masked_fill(steps >= number, 3)
        code = (noisy * 4 ** torch.arange(3)).sum(1)
        logs = TOY.table[0, code][:, :, :3].log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        total = total + (logs * (steps == number)).sum(1)
    nothing = torch.ones_like(tokens, dtype=torch.float64)
    given = Played(batch_of(tokens), tokens, steps, nothing, nothing[:, 0], nothing[:, 0] > 0)
    return given, reward, total


def assert_policy_gradient(objective: PolicyObjective, seeds: int, scale: float = 1.0) -> None:
    """Against d/dtheta of E[R] = sum over orders (1/6) and texts p R."""
    given, reward, total = toy()
    value = (total.exp() * reward).sum() / 6
    (wanted,) = torch.autograd.grad(-value, [TOY.table])
    weight = total.detach().exp() * reward / 6 * len(reward)
    given = replace(given, advantage=weight, surprisal=torch.rand(162, 3, generator=rng(), dtype=torch.float64))
    found = torch.zeros(seeds, *TOY.table.shape, dtype=torch.float64)
    for seed in range(seeds):
        views = objective.views(TOY, given, 3, rng(seed))
        with torch.no_grad():
            old = tuple(objective.score(TOY, given, 3, view) for view in views)
        TOY.zero_grad()
        rows = 0.0
        for report in objective.losses(TOY, given, 3, Known(views, old)):
            report.total.double().backward()
            rows += float(report.normaliser)
        found[seed] = TOY.table.grad / rows * scale
    assert abs(float(value.detach()) - 2.0) < 2.0
    error = found.std(0) / math.sqrt(seeds) if seeds > 1 else torch.zeros_like(wanted)
    assert bool(((found.mean(0) - wanted).abs() <= 5 * error + 1e-7).all())


def test_agrpo_is_the_exact_policy_gradient() -> None:
    """With three draws of three rounds each is drawn once: no noise is left. By surprisal it holds in the mean."""
    assert_policy_gradient(made("agrpo", draws=3, chosen_by="uniform"), 1)
    assert_policy_gradient(made("agrpo", draws=2, chosen_by="surprisal"), 30)
    assert_policy_gradient(made("trace", kl_weight=0.0), 1, scale=3.0)


def test_sampled_rounds_without_their_weight_are_no_policy_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = policy_views._before

    def unweighted(model: Any, given: Played, number: Tensor, weight: Tensor) -> Any:
        return kept(model, given, number, torch.full_like(weight, 3.0))

    monkeypatch.setattr(policy_views, "_before", unweighted)
    with pytest.raises(AssertionError):
        assert_policy_gradient(made("agrpo", draws=2, chosen_by="surprisal"), 30)


def test_a_temperature_left_out_of_the_score_is_seen() -> None:
    """softmax(logits / T), worked out from the logits themselves."""
    given, model = replace(played(), temperature=0.5), LayerModel()
    view = round_views(model, given)[0]
    logits = model.noisy_features(view.tokens, given.batch, BLOCK, view.m2t) @ model.head().T
    logits[:, model.mask_id] = -torch.inf
    wanted = (logits / 0.5).log_softmax(-1).gather(1, given.batch.tokens[view.m2t][:, None])[:, 0]
    for name in ("agrpo", "trace"):
        assert torch.allclose(made(name).score(model, given, BLOCK, view), wanted)
    assert not torch.allclose(log_probabilities(model, given.batch, BLOCK, view), wanted)


def test_within_a_support_the_score_is_a_softmax_over_it_and_has_its_gradient() -> None:
    """Two ids and the token drawn, worked out from all logits; the token drawn is in it even where it was cut."""
    given, model = replace(played(), top_k=2, temperature=0.5), LayerModel()
    view = round_views(model, given)[0]
    ids = support_ids(model, given, BLOCK, view)
    logits = model.noisy_features(view.tokens, given.batch, BLOCK, view.m2t) @ model.head().T / 0.5
    drawn, best = given.batch.tokens[view.m2t], logits[:, :11].topk(2, dim=1).indices
    for row, target in enumerate(drawn.tolist()):
        wanted = set(best[row].tolist()) | {target}
        assert {one for one in ids[row].tolist() if one >= 0} == wanted
    outside = torch.ones(len(ids), 11, dtype=torch.bool).scatter(1, best, False).scatter(1, drawn[:, None], False)
    wanted_scores = logits[:, :11].masked_fill(outside, -torch.inf).log_softmax(1).gather(1, drawn[:, None])[:, 0]
    found = made("trace").score(model, given, BLOCK, view, ids)
    assert torch.allclose(found, wanted_scores)
    slopes = [torch.autograd.grad(one.sum(), list(model.parameters())) for one in (found, wanted_scores)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*slopes, strict=True))


def test_the_first_update_skips_the_pass_that_would_say_what_is_known() -> None:
    objective, given, model = made("espo", kl_weight=0.5, clip=0.5), played(), LayerModel()
    stored = known(objective, given, model, moved())
    both = [gradient(model, objective, given, replace(stored, fresh=fresh, moved=[])) for fresh in (False, True)]
    assert all(torch.equal(both[0][name], both[1][name]) for name, _ in model.named_parameters() if name in both[0])
    stale = known(objective, given, moved(), moved())
    found = [
        gradient(model, objective, given, replace(stale, fresh=fresh, moved=[]))["moved"] for fresh in (False, True)
    ]
    assert found[0] > 0 == found[1]


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    loo, mean, z = (advantages(rewards, form) for form in ("leave_one_out", "group_mean", "z"))
    assert torch.allclose(loo[0], torch.tensor([2 / 3, -2 / 3, -2 / 3, 2 / 3], dtype=torch.float64))
    assert mean[0].tolist() == [0.5, -0.5, -0.5, 0.5] and z[0].tolist() == [1.0, -1.0, -1.0, 1.0]
    assert not loo[1].any() and not mean[1].any() and not z[1].any()
    weights = made("wd1", advantage="group_mean").advantages(rewards)
    high = math.exp(0.5) / (2 * math.exp(0.5) + 2 * math.exp(-0.5))
    assert torch.allclose(weights[0, 0], torch.tensor(4 * (high - (0.5 - high)), dtype=torch.float64))
    assert torch.allclose(weights.sum(1), torch.zeros(2, dtype=torch.float64))


def test_kl_forms_by_hand() -> None:
    gap = torch.tensor([0.5, -0.5], dtype=torch.float64)
    assert kl(gap, "k1").tolist() == [0.5, -0.5] and kl(gap, "k2").tolist() == [0.125, 0.125]
    assert torch.allclose(kl(gap, "k3"), torch.tensor([math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5], dtype=torch.float64))


def test_edits_are_scored_where_a_visible_token_was_replaced() -> None:
    given, model = played(), LayerModel()
    views = made("ebpo", edits=0.5, edit_weight=0.25, draws=2).views(model, given, BLOCK, rng())
    assert sum(int(view.t2t.sum()) for view in views) > 4
    for view in views:
        assert not bool((view.t2t & ~given.batch.learn).any()) and not bool((view.t2t & view.m2t).any())
        assert bool((view.tokens[view.t2t] != given.batch.tokens[view.t2t]).all())
        assert bool((view.elbo[view.t2t] == 0.25).all())
    assert not any(bool(view.t2t.any()) for view in made("ebpo").views(model, given, BLOCK, rng()))
