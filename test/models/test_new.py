# New models of any family: the fields of model.new reach the network, and the small hybrid parents can be trained.
# Entry points: pytest.
# Shapes are read off the networks' weights, not off the configuration they were built from.
"""Tests of randomly initialised models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.oracle import batch

from hildanext.config import load_config
from hildanext.config.model import NewModelConfig
from hildanext.errors import ModelError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.mixer import mixers_of
from hildanext.models.new import new_model

SMALL: dict[str, Any] = {"hidden": 16, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 24, "head_dim": 12}
CONFIGS = Path(__file__).resolve().parents[2] / "runs" / "configs"


def parameters(network: Any) -> int:
    return sum(one.numel() for one in network.parameters())


@pytest.mark.parametrize("family", ["qwen3", "llama", "lfm2", "qwen3_5_text", "qwen3_moe"])
def test_the_fields_reach_the_network_of_every_family(family: str) -> None:
    own = {
        "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
        "qwen3_moe": {"num_experts": 3, "moe_intermediate_size": 10},
    }.get(family, {})
    network = new_model(NewModelConfig(model_type=family, init_std=0.3, config=own, **SMALL), 40)
    weights = {name.partition("layers.")[2]: tuple(one.shape) for name, one in network.named_parameters()}
    assert network.config.model_type == family and network.get_output_embeddings().weight.shape == (40, 16)
    assert weights["1.self_attn.k_proj.weight"] == (12, 16)
    assert weights["1.self_attn.q_proj.weight"][0] == 24 * (2 if family == "qwen3_5_text" else 1)
    feed = weights["1.feed_forward.w1.weight"] if family == "lfm2" else weights.get("1.mlp.gate_proj.weight")
    assert feed == (None if family == "qwen3_moe" else (24, 16))
    assert 0.25 < float(network.get_input_embeddings().weight.detach().std()) < 0.35
    assert [mixer.layer_types[0] for _, mixer, _ in mixers_of(network)] == own.get("layer_types", [])[:1]


def test_small_hybrid_parents_have_one_size_and_their_layers() -> None:
    names = ("hybrid_parent", "hybrid_parent_deltanet", "hybrid_parent_conv")
    networks = [new_model(load_config(CONFIGS / f"{name}.json").model.new, 600) for name in names]
    sizes = [parameters(one) for one in networks]
    assert max(sizes) < 1.01 * min(sizes) and 1.0e6 < min(sizes) < 1.1e6
    kinds = [[kind.layer_types[0] for _, kind, _ in mixers_of(one)] for one in networks]
    assert kinds == [[], ["linear_attention"] * 3, ["conv"] * 2]
    data = batch(1, 16, seed=1)
    for network in networks:
        features = HFDenoiser(network, 599).noisy_features(data.tokens, data, 4, data.learn)
        features.square().sum().backward()
        without = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.any()]
        assert not without and torch.isfinite(features).all()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "nonesuch"}, "no causal language model nonesuch"),
        ({"model_type": "t5"}, "no causal language model t5"),
        ({"config": {"layr_types": []}}, "qwen3 has no field layr_types"),
        ({"model_type": "lfm2", "config": {"layer_types": ["conv"]}}, "lfm2 cannot be built"),
        ({"model_type": "mistral", "config": {"sliding_window": 8}}, "sliding-window"),
        ({"model_type": "gpt2"}, "heads of gpt2 are 8 wide whatever head_dim says, here 12"),
    ],
)
def test_a_family_or_field_that_does_not_exist_is_one_clear_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as seen:
        new_model(NewModelConfig(**SMALL | fields), 40)
    assert "\n" not in str(seen.value)
