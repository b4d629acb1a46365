# The conversion report: counts against the folder's bytes, planted differences, parity that can fail.
# Entry points: pytest.
# Folders are stories260k and copies of it with known edits.
"""Tests of models/inspection.py and the command inspect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import FAMILIES, network, tiny
from models.oracle import batch

from hildanext import cli
from hildanext.config.model import ModelConfig
from hildanext.errors import ModelError
from hildanext.models import inspection
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.inspection import compare, conversion_report, inspect, parity, parity_lengths, require_parity
from hildanext.models.load import load_model
from hildanext.models.meta import HildaMeta
from hildanext.models.save import save_model

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def parent(assets: Path) -> str:
    return str(assets / "stories260k-hf")


@pytest.fixture
def child(parent: str, tmp_path: Path) -> Path:
    loaded = load_model(ModelConfig(path=parent))
    state = dict(loaded.denoiser.model.named_parameters())
    with torch.no_grad():
        state["model.norm.weight"][0] += 3.0
        state["model.norm.weight"][1] -= 4.0
    return save_model(loaded.denoiser, loaded.tokenizer, tmp_path / "child", HildaMeta(block=8))


def test_inspect_counts_what_the_folder_holds(parent: str) -> None:
    found = inspect(parent)
    assert found["parameters"] == 260_032 and found["bytes"] == 4 * 260_032
    assert found["architecture"]["model_type"] == "llama" and found["architecture"]["supported"]
    assert found["architecture"]["rope_theta"] == 10000.0
    assert found["ties"] == {"config": True, "output_matrix_stored": False}
    words = found["vocabulary"]
    assert (words["rows"], words["free_rows"], words["mask_id"]) == (512, 0, 512)
    assert words["mask_from"] == "a new row (resize)" and words["mask_row_norm"] is None


def test_inspect_of_a_converted_folder_reads_its_mask(child: Path) -> None:
    words = inspect(str(child))["vocabulary"]
    assert (words["rows"], words["mask_id"], words["mask_from"]) == (513, 512, "hildanext.json")
    assert words["mask_row_norm"] > 0


def test_compare_finds_the_planted_difference_and_its_norm(child: Path, parent: str) -> None:
    found = compare(str(child), parent)
    assert [row["name"] for row in found["changed"]] == ["model.norm.weight"]
    assert found["changed"][0]["norm"] == pytest.approx(5.0, abs=1e-5)
    assert [row["name"] for row in found["reshaped"]] == ["model.embed_tokens.weight"]
    assert found["reshaped"][0]["norm"] == 0.0 and found["equal"] == 45
    assert found["missing"] == found["added"] == []


def test_compare_lists_tensors_of_one_side_only(parent: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(Path(parent) / "model.safetensors")
    moved = {("extra" if name == "model.norm.weight" else name): tensor for name, tensor in state.items()}
    save_file(moved, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((Path(parent) / "config.json").read_text())
    found = compare(str(tmp_path), parent)
    assert found["missing"] == ["model.norm.weight"] and found["added"] == ["extra"] and not found["changed"]


def test_parity_holds_for_real_weights(parent: str) -> None:
    found = conversion_report(load_model(ModelConfig(path=parent)))
    assert found["parity"]["ok"] and found["parity"]["worst"] <= 1e-5
    assert set(found["parity"]["logits"]) == {"clean half, dense", "causal, dense", "causal, sliced"}
    require_parity(found["parity"], parent)


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "mistral", "qwen3_moe"])
def test_parity_holds_in_every_family(family: str, random_model: Make) -> None:
    model = HFDenoiser(random_model(family), 66)
    assert parity(model)["ok"]


def test_parity_fails_when_the_mask_is_wrong(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = inspection.block_diffusion_mask
    monkeypatch.setattr(inspection, "block_diffusion_mask", lambda length, block, docs: right(length, 2, docs))
    found = parity(load_model(ModelConfig(path=parent)).denoiser)
    assert not found["ok"] and found["logits"]["causal, dense"] <= 1e-5
    with pytest.raises(ModelError, match="logit parity failed"):
        require_parity(found, parent)


def test_parity_fails_when_positions_are_ignored(random_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HFDenoiser(random_model(), 66)
    body = model.body
    monkeypatch.setattr(
        model, "body", lambda t, p, m, **k: body(t, torch.arange(t.shape[1])[None] // 2, m, **k), raising=False
    )
    assert not parity(model)["ok"]


def test_inspect_command_saves_its_report(child: Path, parent: str, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    code = cli.main(["inspect", str(child), "--against", parent, "--run-dir", str(run), "--json"])
    captured = capsys.readouterr()
    saved = json.loads((run / "report.json").read_text())
    assert code == 0 and saved["parity"]["ok"] and saved["against"]["equal"] == 45
    assert json.loads(captured.out)["parameters"] == saved["parameters"] == 260_032 + 64
    assert "model.norm.weight" in captured.err and "parity with the AR model: ok" in captured.err


def test_inspect_command_on_no_model_is_the_users_mistake(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "no Hugging Face model folder" in capsys.readouterr().err


def test_inspect_shows_the_mask_and_shift_in_effect(parent: str, tmp_path: Path, capsys: Any) -> None:
    asked = ["--set", "model.shift=clean", "--no-parity", "--json", "--run-dir", str(tmp_path / "run")]
    assert cli.main(["inspect", parent, *asked]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["effective"] == {"mask_id": 512, "shift": "clean"}
    assert "with these settings [MASK] is 512, shift clean" in captured.err
    assert cli.main(["inspect", parent, "--set", "model.mask_id=400", "--no-parity"]) == 2
    assert "mask_id 400 is the text" in capsys.readouterr().err


def test_inspect_of_a_refused_model_says_why_and_exits_2(parent: str, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "m"
    shutil.copytree(parent, folder, copy_function=shutil.copyfile)
    values = json.loads((folder / "config.json").read_text())
    values |= {"model_type": "cohere", "architectures": ["CohereForCausalLM"], "logit_scale": 8.0}
    (folder / "config.json").write_text(json.dumps(values))
    assert cli.main(["inspect", str(folder), "--no-parity", "--run-dir", str(tmp_path / "run")]) == 2
    assert "block diffusion: no" in capsys.readouterr().err
    assert not json.loads((tmp_path / "run" / "report.json").read_text())["architecture"]["supported"]


class WindowedAttention(torch.nn.Module):
    """Stands before a layer's attention and hides keys further away than `kept` from it."""

    def __init__(self, layer: torch.nn.Module, kept: int) -> None:
        super().__init__()
        self.layer, self.kept = layer, kept

    def forward(self, *args: Any, attention_mask: Any = None, **keywords: Any) -> Any:
        size = keywords["hidden_states"].shape[1]
        if size > self.kept and attention_mask is not None and attention_mask.shape[-1] == size:
            far = torch.arange(size)[:, None] - torch.arange(size)[None] > self.kept
            attention_mask = attention_mask.masked_fill(far, 0 if attention_mask.dtype == torch.bool else -1e9)
        return self.layer(*args, attention_mask=attention_mask, **keywords)


def test_parity_looks_at_lengths_where_a_keep_window_begins_to_hide(random_model: Make) -> None:
    model = HFDenoiser(random_model(), 66)
    assert parity_lengths(model) == (16, 64, 256) == tuple(parity(model, 256)["lengths"])
    assert parity_lengths(model, 48) == (16, 48, 64) and parity_lengths(model, 4096)[-1] == 256
    for layer in model.model.base_model.layers:
        layer.self_attn = WindowedAttention(layer.self_attn, 40)
    found = parity(model)
    assert not found["ok"] and found["tokens"] > 40


def test_layers_that_change_what_they_cached_are_given_masks(random_model: Make) -> None:
    model, data = HFDenoiser(network(tiny(FAMILIES["jetmoe"])), 66), batch(length=64)
    assert not model.takes_layout and HFDenoiser(random_model(), 66).takes_layout
    assert model.backend(4096, 32).name == "dense"
    model.attention = "sliced"
    with pytest.raises(ModelError, match="use auto or dense"):
        model.noisy_features(data.tokens, data, 16, data.learn)
