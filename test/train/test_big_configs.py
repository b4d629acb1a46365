# The configurations of 27B and 35B-A3B: what a step takes on named cards, counted by hand, and all their switches on a
# tiny checkpoint of the same architecture.
# Entry points: pytest.
# Tiny means two DeltaNet layers around one of attention, 64 channels, so that NF4 has whole blocks of 64 weights.
"""Tests of train/cards.py and of runs/configs/qwen3.5* and qwen3.6*."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import network
from models.hybrids import configuration as hybrid_configuration
from models.test_plan_of_27b import SHAPE
from train.material import QUIET, losses

from hildanext.config import Config, load_config
from hildanext.data.tokenizers import load_tokenizer
from hildanext.models.load import kind_at
from hildanext.registry import build
from hildanext.train.anchors import write_anchors
from hildanext.train.cards import CARDS, SHARE, card_pace, on_cards
from hildanext.train.recipes.conversion import train_command

PUBLISHED = 19.0
"""Seconds of a step of 16 rows on a card of 32 GB, by others, with adapters of rank 32."""
MIXTURE = {
    "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text", "vocab_size": 248320,
    "hidden_size": 2048,
    "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "num_experts": 256,
    "num_experts_per_tok": 8, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip


def given(name: str, project: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Config:
    """A configuration whose model is in `folder`."""
    for variable in ("HILDANEXT_MODEL", "HILDANEXT_ANCHORS"):
        monkeypatch.setenv(variable, str(folder / variable[10:].lower()))
    monkeypatch.setenv("HILDANEXT_DATA", "")
    return load_config(project / "runs" / "configs" / name, list(more))


def shaped(folder: Path, shape: dict[str, Any]) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(shape))


def test_a_step_of_27b_is_what_its_products_are_at_the_assumed_share(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shaped(tmp_path, SHAPE)
    config = given("qwen3.6_27b_32gb.json", project, tmp_path, monkeypatch)
    footprint = kind_at(config.model.path).footprint(config.model)
    head = 248320 * 5120
    body = footprint.total - 2 * head
    forwards = 16 * (
        3 * 2 * body * 1024 + 512 * 2 * 2 * head
    )  # with the recomputed one; frozen weights have no gradient
    objective = build("objectives", config.objective, "objective")
    found = {one["card"]: one for one in on_cards(config, footprint, objective, 512, (512.0, 24e9))}
    assert [*found] == [card.name for card in CARDS] and SHARE == 0.4
    for card in CARDS[1:]:
        assert found[card.name]["seconds"] == pytest.approx(forwards / (0.4 * card.rate), rel=0.02)
    assert [found[name]["fits"] for name in ("RTX 4090 24 GB", "RTX 5090 32 GB")] == [False, True]
    assert 0.5 < found["RTX 5090 32 GB"]["seconds"] / PUBLISHED < 2.0


def test_a_mixture_computes_with_the_experts_it_chooses_and_reads_all(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shaped(tmp_path, MIXTURE)
    config = given("qwen3.5_35b_a3b_16x80gb.json", project, tmp_path, monkeypatch)
    footprint = kind_at(config.model.path).footprint(config.model)
    assert footprint.total == pytest.approx(35e9, rel=0.02)
    assert footprint.idle == 40 * 248 * 3 * 512 * 2048
    assert footprint.total - footprint.embedding - footprint.idle == pytest.approx(2.3e9, rel=0.15)
    slow, fast = (card_pace(footprint, config, 2048, card) for card in (CARDS[3], CARDS[4]))
    assert slow.pair / fast.pair == pytest.approx(CARDS[4].rate / CARDS[3].rate)


def test_every_switch_of_27b_runs_on_a_tiny_checkpoint_of_its_architecture(
    project: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    tokenizer = load_tokenizer(shards / "tokenizer")
    size = {"vocab_size": len(tokenizer) + 6, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    network(hybrid_configuration("qwen3_5_text", **size)).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    smaller = {
        "train.steps": 2,
        "train.accumulate": 2,
        "train.data": str(shards),
        "train.eval_rows": 2,
        "train.eval_samples": 1,
        "train.parity": False,
        "ladder.fixed": 8,
        "anchors.layers": [1, 3],
        "objective.layers": [1, 3],
        "model.device": "cpu",
    }  # fmt: skip; random weights of four bits are too far from parity
    values = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in smaller.items()]
    config = given("qwen3.6_27b_32gb_aligned.json", project, tmp_path, monkeypatch, *values)
    assert config.model.adapter.kind == "qlora" and config.train.gradient_checkpointing
    assert write_anchors(config, QUIET)
    report = train_command(config, QUIET, "convert-wsd", tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses(tmp_path / "run")) == 2 and all(line["align"] > 0 for line in lines if "loss" in line)
    assert (tmp_path / "run" / "adapters").is_dir() and Path(report["model"], "model.safetensors").is_file()
