# The plan of a 27 B hybrid on one card against the peaks that others published for the same parent and adapters.
# Entry points: pytest. From a configuration alone: no weights, no tokenizer.
# Their rows are about 512 tokens: 440 tokens a second, 19 seconds for 16 rows. A card has no heap of ours.
"""Test of models/footprint.py on Qwen3.6-27B."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hildanext.config import Config, load_config
from hildanext.models.load import kind_at

SHAPE = {
    "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 5120,
    "intermediate_size": 17408, "num_hidden_layers": 64, "num_attention_heads": 24, "num_key_value_heads": 4,
    "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "max_position_embeddings": 32768,
    "tie_word_embeddings": False, "dtype": "bfloat16",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25},
}  # fmt: skip
PUBLISHED = {16: 24e9, 32: 28e9}
"""Peak bytes by the rank of the adapters, text only, NF4 base, micro-batches of one row."""


@pytest.fixture
def config(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    monkeypatch.setenv("HILDANEXT_MODEL", str(tmp_path))
    monkeypatch.setenv("HILDANEXT_DATA", "")
    return load_config(project / "runs" / "configs" / "qwen3.6_27b_32gb.json")


def planned(config: Config, **adapter: object) -> float:
    """Bytes of a card."""
    own = config.model.model_copy(update={"adapter": config.model.adapter.model_copy(update=adapter)})
    given = config.model_copy(update={"model": own})
    return sum(kind_at(own.path).footprint(own).training(given, config.tokenize.window, 1).values())


def test_the_plan_lands_within_fifteen_percent_of_what_was_published(config: Config) -> None:
    assert kind_at(config.model.path).footprint(config.model).total == pytest.approx(26.9e9, rel=0.01)
    for rank, bytes_ in PUBLISHED.items():
        assert planned(config, rank=rank) == pytest.approx(bytes_, rel=0.15)


def test_a_planted_base_of_sixteen_bits_does_not(config: Config) -> None:
    assert planned(config, rank=16, kind="lora") != pytest.approx(PUBLISHED[16], rel=0.15)
