# What every objective keeps: finite sums with their counts, a gradient, the same numbers for the same seed.
# Entry points: pytest. A new objective is found by its file; its formula is tested in test/core/objectives.
# The model is a random one over the story world's tokenizer; a second model, where one is asked for, is the same.
"""Contract of the objectives."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from hildanext.core.batches import document_batch
from hildanext.core.objective import BaseObjective
from hildanext.core.types import About, Batch, Denoiser, LossReport
from hildanext.models.about import _kept, _watched
from hildanext.models.denoiser import network
from hildanext.models.layers import layer_list
from hildanext.registry import build, names

NAMES = names("objectives")


@pytest.fixture(autouse=True)
def actions(monkeypatch: pytest.MonkeyPatch, loaded: Any) -> None:
    """The model's last two rows stand for the edit actions."""
    rows = loaded.denoiser.vocab_size
    monkeypatch.setattr(loaded.denoiser, "edit_ids", (rows - 2, rows - 1))


def prepared(objective: Any, loaded: Any) -> Any:
    """The objective as a run would train with it."""
    special = tuple(loaded.tokenizer.all_special_ids)
    vocabulary = max(loaded.tokenizer.get_vocab().values()) + 1
    watch, rows = partial(_watched, loaded.denoiser), partial(_kept, loaded.tokenizer)
    known = About(
        vocabulary, special, loaded.device, lambda path: loaded.denoiser, nullcontext, "models/parent",
        len(layer_list(network(loaded.denoiser))), watch, rows,
    )  # fmt: skip
    return objective.prepare(known)


def example(loaded: Any, learned: bool = True) -> Batch:
    """Two documents of 12 and 9 tokens, the second with a prompt of 4 that is not learned; padded to 16."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 900, (2, 12), generator=rng).tolist()
    return document_batch([(ids[0], 0 if learned else 12), (ids[1][:9], 4 if learned else 9)], 0, 8)


def report_of(objective: Any, loaded: Any, block: int = 4, seed: int = 0, learned: bool = True) -> LossReport:
    """One report."""
    made: LossReport = objective.loss(
        loaded.denoiser, example(loaded, learned), block, torch.Generator().manual_seed(seed)
    )
    return made


def broken_promises(objective: Any, loaded: Any) -> list[str]:
    """What is wrong with the reports of a prepared objective."""
    found = []
    for block in (1, 4, 0):
        report = report_of(objective, loaded, block)
        loaded.denoiser.zero_grad()
        report.total.backward()
        slopes = [weight.grad for weight in loaded.denoiser.parameters() if weight.grad is not None]
        loaded.denoiser.zero_grad()
        if report.total.shape != () or not float(report) > 0 or not float(report.normaliser) > 0:
            found.append(f"block {block}: the loss is {report.total} / {report.normaliser}")
        if not slopes or not all(bool(slope.isfinite().all()) for slope in slopes):
            found.append(f"block {block}: no finite gradient reaches the weights")
        if set(report.parts) - set(report.counts) or not report.parts:
            found.append(f"block {block}: parts without counts: {sorted(set(report.parts) - set(report.counts))}")
        sums = [*report.parts.values(), *report.counts.values()]
        if any(one.requires_grad or one.numel() != 1 or not bool(one.isfinite().all()) for one in sums):
            found.append(f"block {block}: parts and counts are detached finite scalars")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_a_finite_sum_with_a_gradient_and_counted_parts(name: str, loaded: Any) -> None:
    assert broken_promises(prepared(build("objectives", {"type": name}), loaded), loaded) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_report(name: str, loaded: Any) -> None:
    objective = prepared(build("objectives", {"type": name}), loaded)
    first, again = report_of(objective, loaded), report_of(objective, loaded)
    assert torch.equal(first.total, again.total) and torch.equal(first.normaliser, again.normaliser)
    assert {part: float(value) for part, value in first.parts.items()} == {
        part: float(value) for part, value in again.parts.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_backwards_of_its_parts_one_after_the_other_give_the_gradient_of_the_whole(name: str, loaded: Any) -> None:
    objective, weights = prepared(build("objectives", {"type": name}), loaded), list(loaded.denoiser.parameters())
    found = []
    for reports in (objective.losses, lambda *asked: [objective.loss(*asked)]):
        loaded.denoiser.zero_grad()
        for report in reports(loaded.denoiser, example(loaded), 4, torch.Generator().manual_seed(0)):
            report.total.backward()
        found.append([torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in weights])
    loaded.denoiser.zero_grad()
    assert any(bool(slope.any()) for slope in found[0])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_is_learned_nothing_is_lost(name: str, loaded: Any) -> None:
    report = report_of(prepared(build("objectives", {"type": name}), loaded), loaded, learned=False)
    assert float(report.total.detach()) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_preparing_gives_an_objective_and_leaves_the_first_as_it_was(name: str, loaded: Any) -> None:
    objective = build("objectives", {"type": name})
    before = objective.model_dump()
    made = prepared(objective, loaded)
    assert isinstance(made, BaseObjective) and objective.model_dump() == before
    assert all(isinstance(path, str) for path in objective.companions)
    assert isinstance(objective.compares_with_origin, bool)


def test_a_planted_mean_without_counts_is_seen(loaded: Any) -> None:
    class Mean(BaseObjective):
        """Reports a part and no count."""

        def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
            select = batch.learn & (batch.positions() > 0)
            return LossReport(
                model.causal_features(batch, select).square().mean(), torch.ones(()), {"a": torch.ones(())}
            )

    found = broken_promises(Mean(), loaded)
    assert len(found) == 3 and "parts without counts: ['a']" in found[0]
