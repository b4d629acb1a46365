# SFT: responses improve, prompts are neither masked nor scored; adapters train, resume and merge.
# Entry points: pytest.
# What the objective sees is recorded through a spy on the denoiser.
"""Tests of commands/sft.py and of adapter runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.material import QUIET, configuration, losses, overrides, records, run

from hildanext.commands.sft import BASE
from hildanext.config import load_config
from hildanext.data.template import template_hash
from hildanext.data.tokenizers import train_small
from hildanext.errors import ModelError
from hildanext.models import hardware
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.load import load_model
from hildanext.train.recipes.conversion import train_command
from hildanext.train.training import check_adapters

WIDE = {"hidden": 64, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 64, "window": 64}


def sft(path: Path, shards: Path, **changes: Any) -> dict[str, Any]:
    values = overrides(shards, **{"ladder": {"fixed": 8}, "train__steps": 30, "optimizer__lr": 0.01, **changes})
    return train_command(load_config(None, values, BASE), QUIET, "sft", path)


def test_sft_lowers_the_response_nll_and_leaves_prompts_untouched(
    shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = HFDenoiser.noisy_features, []

    def spy(self: Any, noisy: Any, batch: Any, block: int, select: Any) -> Any:
        if self.training:
            seen.append((bool((noisy != batch.tokens)[~batch.learn].any()), bool(select[~batch.learn].any()), block))
        return plain(self, noisy, batch, block, select)

    monkeypatch.setattr(HFDenoiser, "noisy_features", spy)
    report = sft(tmp_path, shards, model__path=str(parent))
    assert report["last"]["eval_nll"] < 0.8 * report["first"]["eval_nll"]
    assert len(seen) == 30 * 2 * 2
    assert set(seen) == {(False, False, 8)}
    assert {record["phase"] for record in records(tmp_path) if "loss" in record} == {"fixed"}


def test_sft_uses_the_per_document_grid_the_band_and_two_turns() -> None:
    config = load_config(None, [], BASE)
    assert config.model.block_grid == "per_document"
    assert config.objective.model_dump()["turns"] == 2
    assert config.objective.model_dump()["noise"] == {"low": 0.2, "high": 0.8, "complementary": True}


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_an_adapter_run_resumes_exactly_and_is_merged_into_a_plain_model(
    kind: str, shards: Path, parent: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    if kind == "qlora":
        pytest.importorskip("bitsandbytes")
        run(tmp_path / "wide", shards, model__new=WIDE, objective__type="autoregressive", train__steps=1)
        parent = tmp_path / "wide" / "model"
    changes = {"model__path": str(parent), "model__adapter": {"kind": kind, "rank": 4}, "train__checkpoint_every": 4}
    run(tmp_path / "whole", shards, **changes)
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-000004"
    assert not list(checkpoint.glob("*.safetensors"))
    run(tmp_path / "rest", shards, **changes, train__resume=str(checkpoint))
    assert losses(tmp_path / "rest") == losses(tmp_path / "whole")[4:]
    ours = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    before = load_file(parent / "model.safetensors")
    assert not any("lora" in name for name in ours)
    assert ours.keys() == before.keys()
    assert any(not torch.equal(ours[name], before[name]) for name in before if "proj" in name)
    config = load_config(None, [f"model.path={tmp_path / 'whole' / 'model'}", "model.device=cpu"])
    assert load_model(config.model).denoiser.vocab_size > 0


def test_sft_on_real_instructions_lowers_the_response_nll(assets: Path, tmp_path: Path) -> None:
    rows = json.loads((assets / "rasbt-instruct" / "instruction-data.json").read_text())[:150]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_small([" ".join(row.values()) for row in rows], tmp_path / "tokenizer", 600)
    changes: dict[str, Any] = {
        "paths.data": str(tmp_path / "data"), "train.data": "", "train.prepare": True, "data.workers": 1,
        "data.name": "chats", "data.sources": [{"type": "jsonl", "path": str(tmp_path / "chats.jsonl")}],
        "data.eval_share": 0.1, "tokenize.window": 128, "tokenize.tokenizer": str(tmp_path / "tokenizer"),
        "model.new": {**WIDE, "window": 128}, "ladder": {"fixed": 32}, "train.batch": 4, "train.steps": 25,
    }  # fmt: skip
    report = sft(tmp_path / "run", tmp_path, **changes)
    assert report["last"]["eval_nll"] < 0.9 * report["first"]["eval_nll"]


def test_sft_on_a_plain_parent_says_that_no_conversion_happened(
    shards: Path, parent: Path, tmp_path: Path, capsys: Any
) -> None:
    sft(tmp_path / "plain", shards, model__path=str(parent), train__steps=1)
    assert "plain autoregressive model" in capsys.readouterr().err
    assert "run convert-wsd on it first" in (tmp_path / "plain" / "log.txt").read_text()
    run(tmp_path / "child", shards, model__path=str(parent), ladder={"fixed": 8}, train__steps=1)
    sft(tmp_path / "converted", shards, model__path=str(tmp_path / "child" / "model"), train__steps=1)
    assert "plain autoregressive" not in capsys.readouterr().err


def test_rows_longer_than_the_models_positions_are_refused(shards: Path, tmp_path: Path) -> None:
    short = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 32, "window": 16}
    with pytest.raises(ModelError, match=r"max_position_embeddings is 16, the shards have rows of 32 tokens"):
        run(tmp_path, shards, model__new=short)


def test_adapter_runs_repeat_with_dropout_whatever_was_drawn_before_and_resume_exactly(
    shards: Path, parent: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    adapter = {"kind": "lora", "rank": 4, "dropout": 0.3}
    changes = {"model__path": str(parent), "model__adapter": adapter, "train__checkpoint_every": 4}
    for name, drawn in (("first", 1), ("second", 2)):
        torch.manual_seed(drawn)
        run(tmp_path / name, shards, **changes)
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    checkpoint = str(tmp_path / "first" / "checkpoints" / "step-000004")
    run(tmp_path / "rest", shards, **changes, train__resume=checkpoint)
    assert losses(tmp_path / "rest") == losses(tmp_path / "first")[4:]
    run(tmp_path / "other", shards, **changes, seed=1)
    assert losses(tmp_path / "other") != losses(tmp_path / "first")
    for other in ({"rank": 8}, {"alpha": 4.0}, {"targets": ["q_proj"]}):
        with pytest.raises(ModelError, match=r"train\.resume: .*the adapter there has"):
            run(tmp_path / "wrong", shards, **{**changes, "model__adapter": adapter | other}, train__resume=checkpoint)


def test_adapters_under_fsdp2_are_refused_before_anything_is_loaded(shards: Path, tmp_path: Path) -> None:
    settings = configuration(shards, model__adapter={"kind": "lora"}, train__parallel="fsdp2")
    with pytest.raises(ModelError, match="adapters cannot be gathered"):
        check_adapters(settings)


def test_autocast_without_units_warns_before_the_first_step(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(hardware, "cpu_units", lambda: {"avx2": True})
    run(tmp_path, shards, train__autocast="bfloat16", ladder={"fixed": 8}, train__steps=1)
    assert "warning: train.autocast: cpu has no units for bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize(("filled", "warned"), [(16, True), (32, False), (0, False)])
def test_chats_filled_to_blocks_that_the_run_does_not_end_at_are_warned_of(
    filled: int, warned: bool, shards: Path, parent: Path, tmp_path: Path, capsys: Any
) -> None:
    own = tmp_path / "shards"
    shutil.copytree(shards, own)
    path = own / "sft_train" / "manifest.json"
    loaded = load_model(configuration(shards, model__path=str(parent)).model)
    known = {"pad_to_block": filled, "chat_template": template_hash(loaded.tokenizer)}
    path.write_text(json.dumps(json.loads(path.read_text()) | known))
    sft(tmp_path / "run", own, model__path=str(parent), train__steps=1, ladder={"fixed": 32})
    assert ("this run ends at blocks of 32" in capsys.readouterr().err) == warned
