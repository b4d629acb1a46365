# Learning-rate schedules against their closed forms, parameter groups, 8-bit optimisers.
# Entry points: pytest.
# The peak is 1 unless a test says otherwise.
"""Tests of train/optim.py."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from hildanext.config import load_config
from hildanext.config.train import OptimizerConfig
from hildanext.errors import ConfigError
from hildanext.train import optim
from hildanext.train.optim import build_optimizer, freeze, learning_rate, matches, parameter_groups, part_of, set_rate

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon needs torch >= 2.9")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(64, 64)
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(64, 64)})
        self.mlp = nn.ModuleDict({"up_proj": nn.Linear(64, 128, bias=False)})
        self.norm = nn.LayerNorm(64)


def rates(**values: Any) -> list[float]:
    config = OptimizerConfig(**{"lr": 1.0, "warmup": 0.0, "final": 0.0, **values})
    return [learning_rate(config, step, 100) for step in range(100)]


def test_linear_and_cosine_start_at_the_peak_and_fall_to_their_closed_forms() -> None:
    assert rates(schedule="linear")[25] == pytest.approx(0.75)
    cosine = rates(schedule="cosine")
    assert (cosine[0], cosine[50]) == pytest.approx((1.0, 0.5))
    assert rates(schedule="cosine", final=0.1)[99] == pytest.approx(0.1, abs=1e-3)


def test_wsd_is_flat_and_falls_in_its_last_share() -> None:
    found = rates(schedule="wsd", decay=0.2)
    assert set(found[:81]) == {1.0}
    assert found[90] == pytest.approx(0.5)


def test_the_warm_up_rises_linearly_and_never_starts_at_zero() -> None:
    found = rates(schedule="constant", warmup=0.1)
    assert found[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert set(found[10:]) == {1.0}


def test_the_rate_is_the_peak_times_the_schedule_and_an_optimiser_without_one_moves_nothing() -> None:
    assert rates(schedule="linear", lr=0.4)[25] == pytest.approx(0.3)
    module = Small()
    optimizer, before = build_optimizer(module, OptimizerConfig()).optimizer, module.embed_tokens.weight.clone()
    module.embed_tokens.weight.square().sum().backward()
    optimizer.step()
    assert torch.equal(module.embed_tokens.weight, before)


def test_groups_carry_their_factor_and_vectors_do_not_decay() -> None:
    config = OptimizerConfig(attention=0.5, mlp=2.0, embedding=0.0, weight_decay=0.3)
    optimizer = build_optimizer(Small(), config).optimizer
    set_rate(optimizer, 0.1)
    found = {(round(group["lr"], 6), group["weight_decay"], len(group["params"])) for group in optimizer.param_groups}
    assert found == {(0.05, 0.3, 1), (0.05, 0.0, 1), (0.2, 0.3, 1), (0.1, 0.0, 2)}
    assert part_of("model.layers.0.self_attn.q_proj.weight") == "attention"


def test_frozen_embeddings_do_not_train_and_nothing_to_train_is_an_error() -> None:
    module = Small()
    assert freeze(module, OptimizerConfig(freeze_embeddings=True)) == 64 * 64
    before = module.embed_tokens.weight.clone()
    optimizer = build_optimizer(module, OptimizerConfig()).optimizer
    set_rate(optimizer, 0.1)
    sum(p.square().sum() for p in module.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert torch.equal(module.embed_tokens.weight, before)
    module.requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen"):
        build_optimizer(module, OptimizerConfig())


@pytest.mark.parametrize("name", ["adamw8bit", "lion8bit"])
def test_an_eight_bit_optimiser_lowers_the_loss_on_the_cpu(name: str) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    module = nn.Linear(128, 128)
    choice = build_optimizer(module, OptimizerConfig(name=name, weight_decay=0.0))
    set_rate(choice.optimizer, 1e-2)
    assert (choice.name, choice.reason) == (name, "")
    inputs = torch.randn(32, 128)
    losses = []
    for _ in range(8):
        loss = (module(inputs) - inputs).square().mean()
        losses.append(loss.item())
        choice.optimizer.zero_grad()
        loss.backward()
        choice.optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_without_bitsandbytes_adamw_stands_in_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    choice = build_optimizer(Small(), OptimizerConfig(name="adamw8bit"))
    assert choice.name == "adamw"
    assert "adamw8bit cannot run here" in choice.reason


def stepped(optimizer: torch.optim.Optimizer, module: Small, steps: int = 3) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    set_rate(optimizer, 1e-2)
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=rng)
        optimizer.step()
    return [parameter.detach().clone() for parameter in module.parameters()]


def twins(*settings: dict[str, Any]) -> list[list[torch.Tensor]]:
    found = []
    for values in settings:
        torch.manual_seed(0)
        module = Small()
        found.append(stepped(build_optimizer(module, OptimizerConfig(name="muon", **values)).optimizer, module))
    return found


@needs_muon
def test_our_muon_in_bfloat16_is_that_of_torch_bit_for_bit() -> None:
    torch.manual_seed(0)
    module = Small()
    made = build_optimizer(module, OptimizerConfig(name="muon", orthogonal="bfloat16")).optimizer
    assert type(made.muon) is torch.optim.Muon  # type: ignore[attr-defined]
    ours = stepped(made.multiplying_in(torch.bfloat16), module)  # type: ignore[attr-defined]
    theirs = twins({"orthogonal": "bfloat16"})[0]
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@needs_muon
def test_without_units_muon_multiplies_in_float32_and_moves_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "multiplies", lambda dtype, device: False)
    narrow, wide, low = twins({}, {"orthogonal": "float32"}, {"orthogonal": "bfloat16"})
    assert all(torch.equal(one, other) for one, other in zip(narrow, wide, strict=True))
    assert all((one - other).abs().max() <= 2e-3 for one, other in zip(wide, low, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(wide, low, strict=True))
    monkeypatch.setattr(optim, "multiplies", lambda dtype, device: True)
    assert all(torch.equal(one, other) for one, other in zip(twins({})[0], low, strict=True))


@needs_muon
def test_muons_state_fits_both_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    module, other = Small(), Small()
    first = build_optimizer(module, OptimizerConfig(name="muon", orthogonal="bfloat16")).optimizer
    stepped(first, module, 1)
    second = build_optimizer(other, OptimizerConfig(name="muon", orthogonal="float32")).optimizer
    second.load_state_dict(first.state_dict())
    held = second.state_dict()["muon"]["state"][0]["momentum_buffer"]
    assert torch.equal(held, first.state_dict()["muon"]["state"][0]["momentum_buffer"])
    stepped(second, other, 1)


def test_wsd_reaches_its_peak_or_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer: schedule wsd: warmup 0\.5 \+ decay 0\.6 is more than all steps"):
        load_config(None, ["optimizer.schedule=wsd", "optimizer.warmup=0.5", "optimizer.decay=0.6"])
    OptimizerConfig(schedule="cosine", warmup=0.5, decay=0.6)
    for warmup in (0.0, 0.03, 0.15, 0.5, 0.85):
        config = OptimizerConfig(schedule="wsd", warmup=warmup, decay=1 - warmup, lr=2.0)
        for steps in (7, 10, 33, 100):
            rates = [learning_rate(config, step, steps) for step in range(steps)]
            assert max(rates) == pytest.approx(2.0) and rates[-1] >= 2.0 * config.final


PATTERNS = [
    ("model.layers.0.mlp.up_proj.weight", "mlp", True), ("model.layers.0.mlp.up_proj.weight", "attention", False),
    ("model.layers.7.self_attn.q_proj.weight", "layers 8-9", True),
    ("model.layers.7.self_attn.q_proj.weight", "layers 1-7", False), ("model.layers.3.x", "layers 4", True),
    ("model.embed_tokens.weight", "embeddings", True), ("model.norm.weight", "other", True),
    ("model.norm.weight", "*norm*", True), ("lm_head.weight", "layers 1-99", False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pattern", "fits"), PATTERNS)
def test_a_pattern_names_parts_layers_or_parameters(name: str, pattern: str, fits: bool) -> None:
    assert matches(name, pattern) is fits


def test_rates_by_pattern_multiply_and_what_is_frozen_does_not_train() -> None:
    network = torch.nn.ModuleDict({
        "layers": torch.nn.ModuleList([
            torch.nn.ModuleDict({"mlp": torch.nn.Linear(2, 2), "self_attn": torch.nn.Linear(2, 2)}) for _ in range(3)
        ]),
        "embed_tokens": torch.nn.Embedding(4, 2),
    })  # fmt: skip
    config = OptimizerConfig(
        mlp=0.5, rates={"layers 2-3": 0.1, "*.bias": 2.0}, freeze=("layers 1", "embeddings"), lr=1.0, warmup=0.0,
        schedule="constant",
    )  # fmt: skip
    assert freeze(network, config) == 4 * 2 + 2 * (4 + 2)
    found = {
        name: group["factor"]
        for group in parameter_groups(network, config)
        for name, parameter in network.named_parameters()
        if any(parameter is own for own in group["params"])
    }
    assert found == pytest.approx({
        f"layers.{layer}.{part}.{kind}": factor * 0.1 * (2.0 if kind == "bias" else 1.0)
        for layer in (1, 2) for part, factor in (("mlp", 0.5), ("self_attn", 1.0)) for kind in ("weight", "bias")
    })  # fmt: skip
    for wrong, said in (("layers x", "names no layers"), ("layerz 1", "no parameter fits 'layerz 1'")):
        with pytest.raises(ConfigError, match=said):
            freeze(network, OptimizerConfig(freeze=(wrong,)))


def test_layers_counted_from_nought_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    once = optim.matches
    monkeypatch.setattr(
        optim,
        "matches",
        lambda name, pattern: once(name, pattern.replace("layers 1", "layers 2").replace("2-3", "1-2")),
    )
    with pytest.raises(AssertionError):
        test_rates_by_pattern_multiply_and_what_is_frozen_does_not_train()
