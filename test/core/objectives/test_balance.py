# Objective `balance`: its losses against transformers' own and a formula by loops, padding left out, figures counted.
# Entry points: pytest.
# A tiny random Qwen3 mixture of 4 experts, 2 of them chosen, over rows of two documents and padding.
"""Tests of the balance of experts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from models.families import MLA, Family, network, tiny
from models.hybrids import HYBRIDS, hybrid
from models.oracle import MASK, batch

from hildanext.core.objectives import balance
from hildanext.core.objectives.balance import Balance, real_positions, router_losses
from hildanext.core.types import About, Batch
from hildanext.errors import ConfigError
from hildanext.models import about as told
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.experts import routers_of, routing
from hildanext.registry import build

MIXTURES = ("qwen3_moe", "qwen3_5_moe_text", "mixtral", "granitemoe", "lfm2_moe", "deepseek_v3", "nemotron_h")


@pytest.fixture(scope="module")
def model() -> HFDenoiser:
    return HFDenoiser(network(tiny(Family("qwen3_moe", ""))), MASK)


def prepared(model: HFDenoiser, **fields: Any) -> Any:
    objective = build("objectives", {"type": "balance", **fields})
    known = About(60, (), torch.device("cpu"), lambda path: model, routing=told._routers(model))
    return objective.prepare(known)


def rows(length: int = 12) -> Batch:
    data = batch(2, length, seed=3)
    docs, learn = torch.zeros_like(data.docs), torch.ones_like(data.learn)
    docs[0, 5:], docs[1, 8:] = 1, 1
    learn[1, :2], learn[1, 8:] = False, False
    return replace(data, docs=docs, learn=learn)


def report(objective: Any, model: HFDenoiser, data: Batch, block: int = 4) -> Any:
    return objective.loss(model, data, block, torch.Generator().manual_seed(0))


def test_the_losses_are_the_formulas_and_transformers_own() -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    rng = torch.Generator().manual_seed(0)
    logits, counts = torch.randn(9, 5, generator=rng), torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 1], dtype=torch.bool)
    chosen = logits.topk(2).indices
    found = router_losses(logits, chosen, counts)
    kept = [row for row in range(9) if counts[row]]
    share = [sum(expert in chosen[row].tolist() for row in kept) / len(kept) for expert in range(5)]
    odds = [sum(float(logits[row].softmax(0)[expert]) for row in kept) / len(kept) for expert in range(5)]
    rooms = [math.log(sum(math.exp(float(one)) for one in logits[row])) for row in kept]
    assert float(found[0]) == pytest.approx(5 * sum(f * p for f, p in zip(share, odds, strict=True)), rel=1e-5)
    assert float(found[1]) == pytest.approx(sum(room**2 for room in rooms) / len(kept), rel=1e-5)
    own = load_balancing_loss_func((logits,), 5, 2, counts[None].long())
    torch.testing.assert_close(found[0], own)
    assert router_losses(logits, chosen, torch.zeros(9, dtype=torch.bool)).tolist() == [0.0, 0.0]


def test_padding_and_what_stands_in_it_count_for_nothing(model: HFDenoiser) -> None:
    data = rows()
    assert real_positions(data).tolist() == [[True] * 12, [True] * 8 + [False] * 4]
    other = replace(data, tokens=torch.where(real_positions(data), data.tokens, (data.tokens + 5) % 60))
    objective = prepared(model, auxiliary=0.5, z=0.1)
    one, two = report(objective, model, data), report(objective, model, other)
    assert torch.equal(one.total, two.total)
    assert {n: float(v) for n, v in one.parts.items()} == {n: float(v) for n, v in two.parts.items()}


def test_a_planted_loss_over_padding_is_seen(model: HFDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "real_positions", lambda batch: torch.ones_like(batch.learn))
    monkeypatch.setattr(f"{__name__}.real_positions", lambda batch: torch.ones_like(batch.learn))
    with pytest.raises(AssertionError):
        test_padding_and_what_stands_in_it_count_for_nothing(model)


def test_both_streams_count_and_the_term_is_weighed_by_the_normaliser(model: HFDenoiser) -> None:
    data = rows()
    plain = report(build("objectives", {"type": "mask_and_edit"}), model, data)
    objective = prepared(model, auxiliary=0.5, z=0.1)
    with routing(model.model) as found, model.whole():
        both = report(prepared(model), model, data)
        seen = dict(found)
    assert torch.equal(both.total, plain.total) and len(seen) == 2
    counts = real_positions(data).repeat(1, 2).flatten()
    losses = torch.stack([router_losses(*one, counts) for one in seen.values()]).mean(0)
    full = report(objective, model, data)
    expected = plain.total + plain.normaliser * (0.5 * losses[0] + 0.1 * losses[1])
    torch.testing.assert_close(full.total, expected)
    assert float(full.parts["router_auxiliary"]) == pytest.approx(float(losses[0])) and set(seen) == {1, 2}


def test_figures_say_how_full_experts_are_and_how_often_streams_choose_others(model: HFDenoiser) -> None:
    data = rows()
    found = report(prepared(model), model, data)
    means = {name: float(value / found.counts[name]) for name, value in found.parts.items()}
    assert all(1 <= means[f"load_{layer}"] <= 2 for layer in (1, 2))
    assert found.counts["experts_differ_1"] == 20 and means["experts_differ_masked"] > 0
    # without noise the first layer sees the same vectors in both streams, apart from what attention adds
    assert means["experts_differ_visible"] < means["experts_differ_masked"]
    whole = report(prepared(model), model, data, 0)
    assert not any("differ" in name for name in whole.parts) and "load_1" in whole.parts


def test_the_gradient_evens_out_the_experts(model: HFDenoiser) -> None:
    data, held = rows(), HFDenoiser(network(tiny(Family("qwen3_moe", "")), 5), MASK)
    objective, seen = prepared(held, auxiliary=1.0, over={"type": "autoregressive"}), []
    gates = [router.weight for _, router in routers_of(held.model)]
    for _ in range(40):
        found = report(objective, held, data)
        seen.append(float(found.parts["router_auxiliary"]))
        slopes = torch.autograd.grad(found.total / found.normaliser, gates)
        with torch.no_grad():
            for gate, slope in zip(gates, slopes, strict=True):
                gate -= 0.3 * slope
    assert seen[-1] < seen[0] - 0.02 and seen[-1] >= 2 - 1e-3


@pytest.mark.parametrize("family", MIXTURES)
def test_the_routers_of_every_family_are_found(family: str) -> None:
    held = (
        hybrid(family) if family in HYBRIDS else network(tiny(Family(family, "", MLA if "deepseek" in family else {})))
    )
    found = routers_of(held)
    assert found and all(router.weight.shape == (4, 32) for _, router in found)
    with routing(held) as said, torch.no_grad():
        held(input_ids=torch.arange(6)[None], use_cache=False)
    assert set(said) == {layer for layer, _ in found}
    assert all(logits.shape == (6, 4) and chosen.shape == (6, 2) for logits, chosen in said.values())


def test_a_model_without_experts_is_refused_where_a_loss_is_asked_for() -> None:
    dense = HFDenoiser(network(tiny(Family("llama", ""))), MASK)
    assert told._routers(dense) is None and isinstance(prepared(dense), Balance)
    with pytest.raises(ConfigError, match="no routers"):
        prepared(dense, auxiliary=0.1)
