# Exported folders: what they say, that the weights are the same numbers, and what is refused.
# Entry points: pytest.
# transformers alone reads the plain folder; SDAR's rules are checked entry by entry against its source's needs.
"""Tests of export plugins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hildanext.cli import main
from hildanext.config.decode import DecodeConfig
from hildanext.data.tokenizers import storyworld_tokenizer
from hildanext.decoding.modes import resolve_mode
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError, ModelError
from hildanext.export import sglang
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.load import Loaded
from hildanext.models.meta import HildaMeta
from hildanext.registry import build, names


@pytest.fixture
def loaded(random_model: Callable[..., Any], tmp_path: Path) -> Loaded:
    model = random_model("qwen3", vocab_size=1100, rope_parameters={"rope_type": "default", "rope_theta": 123456.0})
    meta = HildaMeta(mask_id=3, block=4, parent="a parent")
    tokenizer = storyworld_tokenizer(tmp_path / "tokenizer")
    return Loaded(HFDenoiser(model, 3), tokenizer, meta, None, torch.float32, "", torch.device("cpu"))


def test_there_are_two_formats() -> None:
    assert {"huggingface", "sglang"} <= set(names("exports"))


def test_transformers_alone_reads_the_plain_folder_with_equal_logits(loaded: Loaded, tmp_path: Path) -> None:
    files = build("exports", {"type": "huggingface"}).write(loaded, tmp_path / "out")
    assert {"config.json", "model.safetensors", "hildanext.json", "README.md", "tokenizer.json"} <= set(files)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    ids = torch.arange(12)[None]
    assert torch.equal(other(ids).logits, loaded.denoiser.model(ids).logits)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "a parent" in card and "| block size | 4 tokens |" in card


def test_the_dtype_of_the_weights_can_be_chosen(loaded: Loaded, tmp_path: Path) -> None:
    build("exports", {"type": "huggingface", "dtype": "bfloat16"}).write(loaded, tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_calibrated_modes_are_written_beside_those_the_folder_had(loaded: Loaded, tmp_path: Path) -> None:
    loaded.meta.decode.update({"Q_MODE": {"tau_mask": 0.8}, "S_MODE": {"tau_mask": 0.4, "max_post_steps": 0}})
    calibrated = {"S_MODE": {"tau_mask": 0.6, "tau_edit": 0.5}}
    build("exports", {"type": "huggingface", "decode": calibrated}).write(loaded, tmp_path / "out")
    meta = HildaMeta.read(tmp_path / "out")
    assert meta.decode["Q_MODE"] == {"tau_mask": 0.8}
    assert meta.decode["S_MODE"] == {"tau_mask": 0.6, "tau_edit": 0.5, "max_post_steps": 0}
    assert (
        resolve_mode(Request(prompt="", mode="S_MODE"), DecodeConfig(), meta.decode).preset["source"] == "model folder"
    )


@pytest.mark.parametrize("calibrated", [{"FAST": {"tau_mask": 0.6}}, {"S_MODE": {"tau": 0.6}}])
def test_a_calibration_no_request_could_use_is_refused_before_anything_is_written(
    loaded: Loaded, tmp_path: Path, calibrated: dict[str, Any]
) -> None:
    with pytest.raises(DecodeError, match="FAST|tau"):
        build("exports", {"type": "huggingface", "decode": calibrated}).write(loaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_sdar_folder_names_its_architecture_and_unties_the_head(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sglang, "MASK_ID", 1050)
    build("exports", {"type": "sglang", "edit_threshold": 0.5}).write(loaded, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = {
        "architectures": ["SDARForCausalLM"],
        "rope_theta": 123456.0,
        "tie_word_embeddings": False,
        "block_size": 4,
    }
    assert {name: config[name] for name in wanted} == wanted
    state = load_file(tmp_path / "out" / "model.safetensors")
    own = loaded.denoiser.model.state_dict()
    assert torch.equal(state["lm_head.weight"][1050], own["model.embed_tokens.weight"][3])
    assert torch.equal(state["model.embed_tokens.weight"][:1050], own["model.embed_tokens.weight"][:1050])
    assert all(torch.equal(state[name], own[name]) for name in own if "layers" in name)
    yaml = (tmp_path / "out" / "dllm.yaml").read_text()
    assert "JointThreshold" in yaml and "edit_threshold: 0.5" in yaml and "block_size: 4" in yaml


def test_a_small_vocabulary_and_a_shift_are_refused_together(loaded: Loaded, tmp_path: Path) -> None:
    shifted = HFDenoiser(loaded.denoiser.model, 3, shift="clean")
    wrong = Loaded(shifted, loaded.tokenizer, loaded.meta, None, torch.float32, "", torch.device("cpu"))
    with pytest.raises(ModelError, match=r"shift 'clean'.*1100 rows"):
        build("exports", {"type": "sglang"}).write(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_the_folder_that_was_there(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sglang, "MASK_ID", 1050)
    out = tmp_path / "exported" / "out"
    build("exports", {"type": "huggingface"}).write(loaded, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(sglang.Sglang, "_yaml", lambda self, loaded: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build("exports", {"type": "sglang"}).write(loaded, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_command_deletes_no_models_and_not_the_model_itself(
    loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    for name in ("a", "b"):
        build("exports", {"type": "huggingface"}).write(loaded, models / name)
    before = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    capsys.readouterr()
    for output in (models, models / "a", models / "a" / "config.json", models / ".."):
        assert main(["export", "--quiet", "--model", str(models / "a"), "--output", str(output)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    members = ["--members", str(models / "a"), str(models / "b"), "--output", str(models)]
    assert main(["merge-checkpoints", str(tmp_path), "--quiet", *members]) == 2
    assert "holds a and 1 more, which hildanext did not write there" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before
