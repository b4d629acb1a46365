# LoRA and QLoRA: what trains, what the merge computes, what is saved.
# Entry points: pytest.
# The oracle of a merge is W + alpha / rank * B A, written out.
"""Tests of models/lora.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import FAMILIES, network, tiny
from models.oracle import FAMILIES as NAMES
from models.oracle import MASK, batch, noised

from hildanext.config.model import AdapterConfig, ModelConfig
from hildanext.errors import ModelError
from hildanext.models import lora
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.load import load_model
from hildanext.models.lora import (
    adapter_facts,
    adapter_note,
    adapter_state,
    add_adapter,
    has_adapter,
    load_adapter,
    merge_adapter,
    quantisation,
)
from hildanext.models.save import save_model

pytest.importorskip("peft")
Make = Callable[..., Any]


def trained(model: HFDenoiser, settings: AdapterConfig) -> list[torch.nn.Parameter]:
    parameters = add_adapter(model, settings)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    return parameters


def features(model: HFDenoiser) -> torch.Tensor:
    data = batch()
    return model.noisy_features(noised(data), data, 4, data.learn)


@pytest.mark.parametrize("family", NAMES)
def test_a_merged_adapter_computes_what_the_adapted_model_did(family: str, random_model: Make) -> None:
    model = HFDenoiser(random_model(family), MASK)
    names = {name for name, _ in model.model.named_parameters()}
    trained(model, AdapterConfig(kind="lora", rank=2))
    with torch.no_grad():
        adapted = features(model)
        merge_adapter(model)
        torch.testing.assert_close(features(model), adapted, atol=2e-5, rtol=1e-4)
    assert not has_adapter(model.model) and {name for name, _ in model.model.named_parameters()} == names


def test_the_merged_matrix_is_the_sum_of_the_parts(random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK)
    before = model.model.base_model.layers[0].self_attn.q_proj.weight.detach().clone()
    trained(model, AdapterConfig(kind="lora", rank=4, alpha=6.0))
    layer = model.model.base_model.layers[0].self_attn.q_proj
    expected = before + 6.0 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merge_adapter(model)
    torch.testing.assert_close(model.model.base_model.layers[0].self_attn.q_proj.weight, expected)


def test_only_adapters_train_and_a_fresh_one_changes_nothing(random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK)
    with torch.no_grad():
        before = features(model)
    parameters = add_adapter(model, AdapterConfig(kind="lora", rank=2))
    assert torch.equal(features(model).detach(), before)
    features(model).sum().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    assert not [n for n, p in model.model.named_parameters() if p.grad is not None and "lora_" not in n]
    assert set(adapter_state(model)) == {n for n, p in model.model.named_parameters() if p.requires_grad}
    assert not any("lm_head" in name for name in adapter_state(model))


def test_targets_name_the_layers(random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK)
    add_adapter(model, AdapterConfig(kind="lora", rank=1, targets=("q_proj",)))
    assert all("q_proj" in name for name in adapter_state(model)) and len(adapter_state(model)) == 4
    with pytest.raises(ModelError, match="name linear layers"):
        add_adapter(HFDenoiser(random_model(), MASK), AdapterConfig(kind="lora", targets=("absent",)))


def test_saving_an_unmerged_model_is_a_mistake(random_model: Make, tmp_path: Path) -> None:
    model = HFDenoiser(random_model(), MASK)
    add_adapter(model, AdapterConfig(kind="lora", rank=1))
    with pytest.raises(ValueError, match="merge_adapter first"):
        save_model(model, None, tmp_path / "out")


@pytest.mark.parametrize(("kind", "tolerance"), [("qlora", 0.02), ("lora8bit", 0.1)])
def test_a_quantised_model_trains_merges_and_saves_plain(
    kind: str, tolerance: float, assets: Path, tmp_path: Path, random_model: Make
) -> None:
    pytest.importorskip("bitsandbytes")
    words = load_model(ModelConfig(path=str(assets / "stories260k-hf"))).tokenizer
    plain = HFDenoiser(
        random_model(vocab_size=513, hidden_size=64, head_dim=16, intermediate_size=64, num_hidden_layers=1), 512
    )
    folder = save_model(plain, words, tmp_path / "plain")
    settings = AdapterConfig.model_validate({"kind": kind, "rank": 2})
    loaded = load_model(ModelConfig(path=str(folder), adapter=settings))
    model = loaded.denoiser
    parameters = trained(model.train(), settings)
    features(model).square().mean().backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in parameters if parameter.grad is not None)
    with torch.no_grad():
        adapted = features(model)
        merge_adapter(model)
        merged = features(model)
    assert (merged - adapted).norm() <= tolerance * adapted.norm()
    again = load_model(ModelConfig(path=str(save_model(model, words, tmp_path / "out"))))
    with torch.no_grad():
        assert torch.equal(features(again.denoiser), merged)
    assert "quantization" not in (tmp_path / "out" / "config.json").read_text()


def test_four_bit_values_are_those_of_bitsandbytes(assets: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight.data = torch.randn(32, 64)
    layer = layer.to("cpu")
    expected = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    torch.testing.assert_close(lora._dense_weight(layer), expected.float(), atol=1e-5, rtol=0)


def test_8_bit_products_are_refused_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(lora, "capability", lambda device: (6, 1))
    with pytest.raises(ModelError, match=r"6\.1 has no int8 kernels"):
        quantisation(AdapterConfig(kind="lora8bit"), torch.device("cpu"))
    settings = quantisation(AdapterConfig(kind="qlora"), torch.device("cpu"))
    assert settings.bnb_4bit_compute_dtype == torch.float32 and settings.bnb_4bit_quant_type == "nf4"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install hildanext\[quant\]"):
        quantisation(AdapterConfig(kind="qlora"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("family", "targets", "words"),
    [
        ("llama", ("embed_tokens",), "embed_tokens is the embedding"),
        ("llama", ("lm_head", "q_proj"), "lm_head is the output matrix"),
        ("llama tied", ("lm_head",), "lm_head is the output matrix"),
        ("llama", ("q_proj", "absent"), "absent names no layer"),
        ("mixtral", ("experts",), "experts is MixtralExperts, not a linear layer"),
        ("gpt2", (), "no linear layers"),
    ],
)
def test_targets_that_cannot_be_adapted_are_named(family: str, targets: tuple[str, ...], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        add_adapter(HFDenoiser(network(tiny(FAMILIES[family])), MASK), AdapterConfig(kind="lora", targets=targets))


def test_what_a_mixture_leaves_without_an_adapter_is_said(random_model: Make) -> None:
    model = HFDenoiser(random_model("qwen3_moe"), MASK)
    add_adapter(model, AdapterConfig(kind="lora", rank=2))
    assert "q_proj x2" in adapter_note(model) and "frozen: " in adapter_note(model)
    assert "gate_up_proj (" in adapter_note(model) and "gate (" in adapter_note(model)
    dense = HFDenoiser(random_model(), MASK)
    add_adapter(dense, AdapterConfig(kind="lora", rank=2))
    assert "frozen" not in adapter_note(dense)


@pytest.mark.parametrize("targets", [("gate_up_proj", "down_proj", "q_proj"), ("down_proj",)])
def test_each_expert_of_a_fused_matrix_gets_an_update_of_its_own(targets: tuple[str, ...], random_model: Make) -> None:
    model = HFDenoiser(random_model("qwen3_moe"), MASK)
    names, before = {name for name, _ in model.model.named_parameters()}, features(model).detach()
    old = model.model.model.layers[1].mlp.experts.down_proj.detach().clone()
    trained(model, AdapterConfig(kind="lora", rank=2, alpha=6.0, targets=targets))
    assert adapter_note(model).startswith("adapters on " + ", ".join(f"{name} x2" for name in sorted(targets)))
    assert adapter_facts(model)["targets"] == ", ".join(sorted(targets))
    adapted = features(model)
    adapted.square().sum().backward()
    pairs = {n: p for n, p in model.model.named_parameters() if "lora_" in n}
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in pairs.values())
    experts, out, inner = old.shape
    wrapper = next(
        one for name, one in model.model.named_modules()
        if "layers.1." in name and getattr(one, "parameter_name", "") == "down_proj"
    )  # fmt: skip
    down, up = (side["default"].weight.detach().clone() for side in (wrapper.lora_A, wrapper.lora_B))
    assert down.shape == (2 * experts, inner) and up.shape == (out, 2 * experts)
    merge_adapter(model)
    torch.testing.assert_close(features(model), adapted, atol=1e-5, rtol=1e-5)
    assert (adapted - before).abs().max() > 1e-3
    assert {name for name, _ in model.model.named_parameters()} == names and not has_adapter(model)
    new = model.model.model.layers[1].mlp.experts.down_proj
    for expert in range(experts):
        rows = slice(2 * expert, 2 * expert + 2)
        update = torch.stack([up[:, expert + experts * rank] for rank in range(2)], 1) @ down[rows]
        torch.testing.assert_close(new[expert], old[expert] + 6.0 / 2 * update, atol=1e-5, rtol=1e-5)


def test_dropout_on_a_fused_matrix_is_refused(random_model: Make) -> None:
    with pytest.raises(ModelError, match=r"dropout: down_proj hold all experts .* set it to 0"):
        add_adapter(
            HFDenoiser(random_model("qwen3_moe"), MASK), AdapterConfig(kind="lora", dropout=0.1, targets=("down_proj",))
        )


def test_adapters_are_drawn_from_the_seed_alone(random_model: Make) -> None:
    states = []
    for seed, before in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(before)
        state = torch.random.get_rng_state()
        model = HFDenoiser(random_model(), MASK)
        add_adapter(model, AdapterConfig(kind="lora", rank=2), seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        states.append(adapter_state(model))
    name = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][name], states[1][name]) and not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize("change", [{"rank": 3}, {"alpha": 8.0}, {"targets": ("q_proj",)}])
def test_adapters_of_other_settings_are_not_loaded(change: dict[str, Any], random_model: Make) -> None:
    model, other = HFDenoiser(random_model(), MASK), HFDenoiser(random_model(), MASK)
    add_adapter(model, AdapterConfig(kind="lora", rank=2))
    add_adapter(other, AdapterConfig.model_validate({"kind": "lora", "rank": 2} | change))
    with pytest.raises(ModelError, match="checkpoint: the adapter there has"):
        load_adapter(other, adapter_state(model), adapter_facts(model), "checkpoint")
    trained = {name: torch.ones_like(tensor) for name, tensor in adapter_state(model).items()}
    load_adapter(model, trained, adapter_facts(model), "checkpoint")
    assert all(bool((tensor == 1).all()) for tensor in adapter_state(model).values())
