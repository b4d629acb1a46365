# GGUF in: the network and the tokenizer that were put into a file come out of it, and what cannot be read says so.
# Entry points: pytest.
# The oracle is the random network that the file was written from; the writer is llama.cpp's own package.
"""Tests of models/gguf.py."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.gguf_file import HERE, NEEDED, TEMPLATE, llama, write_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hildanext.cli import main
from hildanext.config import load_config
from hildanext.config.model import ModelConfig
from hildanext.errors import ModelError
from hildanext.models import gguf as reading
from hildanext.models.load import load_model, located, model_folder, place
from hildanext.models.meta import HildaMeta

Make = Callable[..., Any]
needs = pytest.mark.skipif(not HERE, reason=NEEDED)
IDS = torch.tensor([[1, 70, 71, 72, 80, 99, 120, 3, 4, 5]])


@needs
@torch.no_grad()
def test_a_file_and_the_folder_that_holds_it_load_as_the_network_that_was_written(
    random_model: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = llama(random_model)
    (tmp_path / "LICENSE").write_text("do as you like\n")
    file = write_gguf(tmp_path / "tiny.gguf", model)
    loaded = load_model(ModelConfig(path=str(file), shift="clean"))
    assert torch.allclose(loaded.denoiser.model(IDS).logits[..., :260], model(IDS).logits, atol=1e-5)
    assert loaded.tokenizer.chat_template == TEMPLATE
    assert loaded.tokenizer("ab<|im_end|>")["input_ids"] == [259, 2]
    assert loaded.tokenizer.tokenize("a12 3") == ["a", "1", "2", "\u0120", "3"]
    assert "once" in capsys.readouterr().err
    folder = model_folder(str(tmp_path))
    assert folder == place(str(file)) == loaded.path
    assert (folder / "LICENSE").read_text() == "do as you like\n"
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert capsys.readouterr().err == ""
    plain = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert torch.allclose(plain(IDS).logits, model(IDS).logits, atol=1e-5)


@needs
@torch.no_grad()
def test_a_quantised_file_becomes_bfloat16_near_the_network(random_model: Make, tmp_path: Path) -> None:
    model = llama(random_model, tie_word_embeddings=False)
    folder = model_folder(str(write_gguf(tmp_path / "tiny.Q8_0.gguf", model, "Q8_0")))
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16} and "lm_head.weight" in weights
    for name, parameter in model.named_parameters():
        assert (weights[name].float() - parameter).abs().max() <= 0.02 * parameter.abs().max(), name


@needs
def test_a_file_that_changed_is_read_again_and_one_that_did_not_is_not(random_model: Make, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama(random_model))
    before = (model_folder(str(file)) / "model.safetensors").stat().st_mtime_ns
    assert (model_folder(str(file)) / "model.safetensors").stat().st_mtime_ns == before
    write_gguf(file, llama(random_model, seed=1))
    later = (place(str(file)) / "hildanext.json").stat().st_mtime + 5
    os.utime(file, (later, later))
    assert (model_folder(str(file)) / "model.safetensors").stat().st_mtime_ns != before


@needs
@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"architecture": "nonesuch"}, "nonesuch is not supported"),
        ({"drop": "blk.1.ffn_up.weight"}, "1 tensors of its network are missing, the first model.layers.1.mlp.up_proj"),
        ({"more": {"rope_freqs.weight": torch.ones(8)}}, "would be dropped, such as rope_freqs.weight"),
        ({"general__type": "adapter"}, "holds adapter, not a language model"),
    ],
    ids=["architecture", "missing", "unknown", "adapter"],
)
def test_what_cannot_be_read_whole_gets_one_line_and_writes_nothing(
    faults: dict[str, Any], said: str, random_model: Make, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "bad.gguf", llama(random_model), **faults)
    with pytest.raises(ModelError, match=said) as caught:
        model_folder(str(file))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


@needs
def test_a_file_that_is_no_gguf_is_cut_or_is_a_part_gets_one_line(random_model: Make, tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", llama(random_model)).read_bytes()
    (tmp_path / "text.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "head.gguf").write_bytes(whole[:40])
    shutil.copyfile(tmp_path / "whole.gguf", tmp_path / "m-00001-of-00002.gguf")
    said = {"text": "not a GGUF file", "cut": "damaged", "head": "damaged", "m-00001-of-00002": "one part of several"}
    for name, words in said.items():
        with pytest.raises(ModelError, match=words):
            model_folder(str(tmp_path / f"{name}.gguf"))
    with pytest.raises(ModelError, match="5 GGUF files .*name one of them"):
        model_folder(str(tmp_path))
    with pytest.raises(ModelError, match="no such file"):
        model_folder(str(tmp_path / "gone.gguf"))


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "any.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(reading, "find_spec", lambda name: None if name == "gguf" else True)
    with pytest.raises(ModelError, match=r"GGUF needs gguf; pip install 'hildanext\[gguf\]'"):
        model_folder(str(tmp_path / "any.gguf"))


@needs
def test_tokenize_takes_the_tokenizer_of_the_file_a_run_or_the_home_folder_names(
    random_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file = write_gguf(tmp_path / "tiny.gguf", llama(random_model))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("{}")
    shutil.copytree(model_folder(str(file)), tmp_path / "run" / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"a text of number {i}, long enough"}) + "\n" for i in range(40)))
    source = json.dumps([{"type": "jsonl", "path": str(rows)}])
    assert main(["prepare-data", "--quiet", "--set", f"data.sources={source}", "--set", "data.name=own"]) == 0
    for number, path in enumerate((str(file), "~/tiny.gguf", "~/run")):
        sets = [f"model.path={path}", "data.name=own", f"tokenize.name=t{number}", "tokenize.window=64"]
        assert main(["tokenize", "--quiet", *(word for one in sets for word in ("--set", one))]) == 0
        manifest = json.loads((tmp_path / "data" / "tokenized" / f"t{number}" / "manifest.json").read_text())
        assert manifest["vocab_size"] == 260
    kept = located(load_config(None, ["model.path=tiny", "tokenize.tokenizer=auto"]))
    assert kept.model.path == "tiny" and kept.tokenize.tokenizer == "auto"
    named = located(load_config(None, ["tokenize.tokenizer=tiny-parent"])).tokenize.tokenizer
    assert (Path(named) / "tokenizer.json").is_file() and Path(named).name == "parent"
    assert HildaMeta.read(place(str(file))).history[0]["gguf"] == "tiny.gguf"
