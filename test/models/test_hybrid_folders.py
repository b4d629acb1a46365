# Folders of hybrid and mixture-of-experts models: the verdict of inspect, text-only loading, adapters on recurrences.
# Entry points: pytest.
# A verdict is read off config.json and one matrix; a nested checkpoint is written by transformers with its vision part.
"""Tests of folders of hybrid models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import Family, network, tiny
from models.hybrids import HYBRIDS, WIDTHS, configuration, hybrid
from models.oracle import MASK, batch, noised
from safetensors.torch import save_file

from hildanext import cli
from hildanext.config.model import AdapterConfig, ModelConfig
from hildanext.errors import ModelError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.inspection import inspect, parity
from hildanext.models.load import load_model
from hildanext.models.lora import adapter_note, add_adapter, merge_adapter
from hildanext.models.save import save_model
from hildanext.models.support import check_head, fold_scale

ROWS, EVERY = 520, "softmax attention over a mask in every layer"
MIXERS = {
    "lfm2": "2 short_conv", "lfm2_moe": "2 short_conv", "lfm3": "2 short_conv", "qwen3_next": "2 gated_deltanet",
    "qwen3_5_text": "2 gated_deltanet", "qwen3_5_moe_text": "2 gated_deltanet", "olmo_hybrid": "2 gated_deltanet",
    "granitemoehybrid": "2 mamba2", "nemotron_h": "2 mamba2", "falcon_h1": "2 mamba2", "zamba2": "4 mamba2",
}  # fmt: skip
MIXTURES = ("qwen3_moe", "qwen2_moe", "mixtral", "granitemoe", "deepseek_v3", "olmoe", "flex_olmo")
FORGETS = "forgets the recurrent state"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bamba": ("bamba", {"attn_layer_indices": [0], **WIDTHS}, FORGETS), "jamba": ("jamba", {}, FORGETS),
    "kimi_linear": ("kimi_linear", {}, "its own cache"), "gpt_oss": ("gpt_oss", {}, "sliding-window"),
    "minimax": ("minimax", {}, "linear_attention"), "mamba2": ("mamba2", {"num_heads": 8}, "not a softmax"),
    "lfm3 windows": ("lfm3", {"layer_types": ["conv", "sliding_attention"]}, "sliding-window"),
    "cohere": ("cohere", {"logit_scale": 0.1}, "logit_scale"),
}  # fmt: skip


def folder_of(config: Any, assets: Path, folder: Path) -> str:
    config.save_pretrained(folder)
    save_file({"model.embed_tokens.weight": torch.ones(ROWS, 4)}, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (assets / "stories260k-hf" / name).is_file():
            shutil.copyfile(assets / "stories260k-hf" / name, folder / name)
    return str(folder)


@pytest.mark.parametrize("family", [*MIXERS, *MIXTURES])
def test_inspect_takes_what_is_exact_and_says_what_it_is_made_of(family: str, assets: Path, tmp_path: Path) -> None:
    config = configuration(family) if family in MIXERS else tiny(Family(family, ""))
    found = inspect(folder_of(config, assets, tmp_path))["architecture"]
    assert found["supported"] and (MIXERS.get(family) or EVERY) in found["reason"]


@pytest.mark.parametrize("name", REFUSED)
def test_inspect_refuses_what_is_not_and_says_why(name: str, assets: Path, tmp_path: Path) -> None:
    family, changes, words = REFUSED[name]
    found = inspect(folder_of(tiny(Family(family, "", changes)), assets, tmp_path))["architecture"]
    assert not found["supported"] and words in found["reason"]


@pytest.mark.parametrize(
    ("family", "name"), [("granitemoehybrid", "logits_scaling"), ("granite", "logits_scaling"),
                         ("falcon_h1", "lm_head_multiplier")],
)  # fmt: skip
def test_a_factor_on_the_logits_goes_into_the_last_norm_and_changes_no_logit(
    family: str, name: str, assets: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    changes = {"vocab_size": ROWS, name: 3.0}
    config = configuration(family, **changes) if family in HYBRIDS else tiny(Family(family, "", changes))
    folder = folder_of(config, assets, tmp_path / "parent")
    network(config).save_pretrained(folder)
    reason = inspect(folder)["architecture"]["reason"]
    assert f"{name} 3.0 goes into the last norm" in reason
    own = AutoModelForCausalLM.from_pretrained(folder)
    loaded = load_model(ModelConfig(path=folder))
    child = save_model(loaded.denoiser, loaded.tokenizer, tmp_path / "child")
    tokens = batch(1, 12).tokens
    plain = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    with torch.no_grad():
        expected = own(input_ids=tokens).logits
        found = loaded.denoiser(tokens, torch.arange(12)[None], plain)
        again = AutoModelForCausalLM.from_pretrained(child)(input_ids=tokens).logits
    for logits in (found, again):
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert parity(loaded.denoiser)["ok"] and float(expected.abs().max()) > 0.1


def test_a_norm_that_is_not_proportional_to_its_weight_takes_no_factor() -> None:
    held = hybrid("qwen3_5_text")
    held.config.logits_scaling = 3.0
    before = held.model.norm.weight.clone()
    fold_scale(held)
    assert torch.equal(held.model.norm.weight, before)
    with pytest.raises(ModelError, match="logits_scaling"):
        check_head(held, "folder")


@pytest.fixture
def nested(assets: Path, tmp_path: Path) -> tuple[Any, Path]:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = configuration("qwen3_5_text", vocab_size=ROWS).to_dict()
    text["rope_parameters"] |= {"mrope_section": [1, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.75}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision)).eval()
    folder_of(network.config, assets, tmp_path / "parent")
    network.save_pretrained(tmp_path / "parent")
    return network, tmp_path / "parent"


def test_a_checkpoint_with_a_vision_tower_loads_as_text_and_that_is_said(
    nested: tuple[Any, Path], tmp_path: Path, capsys: Any
) -> None:
    whole, folder = nested
    tower = {name: one for name, one in whole.named_parameters() if ".visual." in name}
    assert cli.main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().err
    assert f"{len(tower)} tensors of model.visual are skipped" in said
    skipped = inspect(str(folder))["skipped"]
    assert skipped["parameters"] == sum(one.numel() for one in tower.values()) and skipped["parts"] == ["model.visual"]
    loaded = load_model(ModelConfig(path=str(folder)))
    tokens = batch(1, 16).tokens
    with torch.no_grad():
        expected = whole(input_ids=tokens).logits
        assert torch.equal(loaded.denoiser.model(input_ids=tokens).logits, expected)
    assert parity(loaded.denoiser)["ok"]
    child = save_model(loaded.denoiser, loaded.tokenizer, tmp_path / "child")
    assert inspect(str(child))["skipped"]["tensors"] == 0
    assert json.loads((child / "config.json").read_text())["architectures"] == ["Qwen3_5ForCausalLM"]


def test_a_text_tensor_that_config_does_not_know_is_not_taken_for_a_tower(nested: tuple[Any, Path]) -> None:
    whole, folder = nested
    state = {name: one.contiguous() for name, one in whole.state_dict().items()} | {"model.visions.x": torch.ones(2)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.visions" not in inspect(str(folder))["skipped"]["parts"]
    with pytest.raises(Exception, match=r"unknown to config\.json.*model\.visions\.x"):
        load_model(ModelConfig(path=str(folder)))


PROJECTIONS = {
    "lfm2": ("conv.in_proj", "conv.out_proj"), "granitemoehybrid": ("in_proj", "out_proj"),
    "qwen3_5_text": ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"),
    "qwen3_next": ("in_proj_qkvz", "in_proj_ba", "out_proj"),
}  # fmt: skip


@pytest.mark.parametrize("family", PROJECTIONS)
def test_adapters_on_recurrent_projections_train_and_merge(family: str) -> None:
    pytest.importorskip("peft")
    model, data = HFDenoiser(hybrid(family), MASK), batch(1, 16, documents=True)
    noisy = noised(data)
    before = model.noisy_features(noisy, data, 4, data.learn).detach()
    parameters = add_adapter(model, AdapterConfig(kind="lora", rank=2, targets=PROJECTIONS[family]))
    assert set(adapter_note(model).split(";")[0].removeprefix("adapters on ").split(", ")) == {
        f"{name.removeprefix('conv.')} x2" for name in PROJECTIONS[family]
    }
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    adapted = model.noisy_features(noisy, data, 4, data.learn)
    adapted.square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in parameters)
    merge_adapter(model)
    merged = model.noisy_features(noisy, data, 4, data.learn).detach()
    torch.testing.assert_close(merged, adapted.detach(), atol=1e-5, rtol=1e-5)
    assert (merged - before).abs().max() > 1e-2
