# Adapter folders: written by a run, read over their base as the run's own merged model, gone on with, refused.
# Entry points: pytest.
# The oracles are the merged model of the same run and peft's own reading of the folder.
"""Tests of models/adapter_folder.py and models/kinds/adapters.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from train.material import QUIET, configuration, make_shards, overrides, run

from hildanext.config import load_config
from hildanext.config.model import AdapterConfig, ModelConfig
from hildanext.errors import ModelError
from hildanext.models import adapter_folder
from hildanext.models.denoiser import network
from hildanext.models.inspection import inspect
from hildanext.models.load import Loaded, load_model
from hildanext.models.lora import add_adapter
from hildanext.models.preflight import estimate
from hildanext.models.save import save_model
from hildanext.train.recipes.conversion import train_command

pytest.importorskip("peft")
LORA = {"kind": "lora", "rank": 2, "alpha": 6.0}
IDS = torch.arange(3, 27)[None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """parent/ (a trained AR model), one/ (a LoRA run over it, large steps), shards/."""
    folder = tmp_path_factory.mktemp("adapters")
    shards = make_shards(folder / "shards")
    run(folder / "ar", shards, objective__type="autoregressive", train__steps=2)
    shutil.copytree(folder / "ar" / "model", folder / "parent")
    changes: dict[str, Any] = {"model__path": str(folder / "parent"), "model__adapter": LORA, "model__shift": "clean"}
    run(folder / "one", shards, **changes, ladder={"fixed": 4}, optimizer__lr=0.02, train__steps=40)
    shutil.copytree(folder / "one" / "adapters", folder / "child")
    return folder


def loaded(folder: Path, **changes: Any) -> Loaded:
    return load_model(ModelConfig(path=str(folder), device="cpu", **changes))


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    return network(loaded(folder).denoiser)(IDS).logits


def test_an_adapter_folder_is_the_runs_merged_model_over_its_base_and_small(made: Path) -> None:
    merged, apart, parent = (logits(made / "one" / "model"), logits(made / "child"), logits(made / "parent"))
    torch.testing.assert_close(apart, merged, atol=0.05, rtol=0)  # its matrices are bfloat16
    assert (parent[..., : merged.shape[-1]] - merged[..., : parent.shape[-1]]).abs().max() > 0.2
    one, other = loaded(made / "child"), loaded(made / "one" / "model")
    same = ("kind", "base", "mask_id", "shift", "block", "document_start", "parent", "run")
    assert [getattr(one.meta, name) for name in same] == [getattr(other.meta, name) for name in same]
    assert one.meta.shift == "clean"
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert not {"config.json", "tokenizer.json"} & {path.name for path in (made / "child").iterdir()}


def test_peft_reads_the_same_model_from_the_folder(made: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(made / "parent", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(made / "child")).merge_and_unload()
    with torch.no_grad():
        expected = theirs(IDS).logits
    torch.testing.assert_close(logits(made / "child")[..., : expected.shape[-1]], expected, atol=1e-4, rtol=0)


def test_what_is_saved_of_it_is_a_plain_model(made: Path, tmp_path: Path) -> None:
    one = loaded(made / "child")
    save_model(one.denoiser, one.tokenizer, tmp_path / "plain", one.meta)
    assert json.loads((tmp_path / "plain" / "hildanext.json").read_text())["kind"] == "hf"
    torch.testing.assert_close(logits(tmp_path / "plain"), logits(made / "child"))


def test_it_is_inspected_and_planned_as_its_base(made: Path) -> None:
    facts = inspect(str(made / "child"))
    assert facts["adapters"] == {"base": str(made / "parent"), "matrices": 14, "rank": [2], "scale": 3.0}
    assert facts["parameters"] == inspect(str(made / "parent"))["parameters"]
    plans = [estimate(configuration(made / "shards", model__path=str(made / name)), 32) for name in ("child", "parent")]
    assert plans[0] == plans[1]


def test_other_base_weights_are_refused_and_a_missing_base_names_the_cure(made: Path, tmp_path: Path) -> None:
    for name in ("child", "parent"):
        shutil.copytree(made / name, tmp_path / name)
    other = loaded(tmp_path / "parent")
    with torch.no_grad():
        network(other.denoiser).model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    shutil.rmtree(tmp_path / "parent")
    save_model(other.denoiser, other.tokenizer, tmp_path / "parent")
    with pytest.raises(ModelError, match=r"not the weights that the adapters of .*child were trained on"):
        loaded(tmp_path / "child")
    shutil.rmtree(tmp_path / "parent")
    with pytest.raises(
        ModelError, match=r"adapters over parent, which is not beside them; run `hildanext fetch parent"
    ):
        loaded(tmp_path / "child")


def test_adapters_over_the_bundled_parent_find_it_by_its_name(tmp_path: Path) -> None:
    base = load_model(ModelConfig(path="tiny-parent", device="cpu"))
    add_adapter(base.denoiser, AdapterConfig(kind="lora", rank=2))
    assert base.path is not None
    folder = adapter_folder.write_adapters(base.denoiser, tmp_path / "x", base.meta, base.path)
    assert json.loads((folder / "hildanext.json").read_text())["base"]["name"] == "tiny-parent"
    torch.testing.assert_close(logits(folder), logits(Path("tiny-parent")))


def test_the_digest_is_of_values_not_of_dtypes_or_files(made: Path, tmp_path: Path) -> None:
    half = loaded(made / "parent", dtype="bfloat16")
    folders = [tmp_path / "half", tmp_path / "whole"]
    save_model(half.denoiser, half.tokenizer, folders[0])
    save_model(half.denoiser.float(), half.tokenizer, folders[1])
    layers = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"]
    one, other = (adapter_folder._digest(folder, layers) for folder in folders)
    assert one == other != adapter_folder._digest(made / "parent", layers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora=True; only plain LoRA"),
        ({"r": 0}, "cannot be read"),
        ({"peft_type": "IA3"}, "peft_type=IA3"),
    ],
)
def test_what_is_not_plain_lora_is_refused(made: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    shutil.copytree(made / "child", tmp_path / "child")
    file = tmp_path / "child" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=words):
        adapter_folder.read_adapters(tmp_path / "child")


def test_damaged_matrices_and_quantised_bases_have_one_line(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "child", tmp_path / "child")
    (tmp_path / "child" / "adapter_model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ModelError, match="the adapters cannot be read"):
        adapter_folder.read_adapters(tmp_path / "child")
    with pytest.raises(ModelError, match=r"added to unquantised weights; export it"):
        loaded(made / "child", adapter=AdapterConfig(kind="qlora"))


def test_training_goes_on_from_a_folder_of_adapters(made: Path) -> None:
    changes = {"model__path": str(made / "parent"), "model__shift": "clean", "ladder": {"fixed": 4}}
    start = LORA | {"start": str(made / "one" / "adapters")}
    report = run(made / "two", made / "shards", **changes, model__adapter=start, train__steps=1)
    before = json.loads((made / "one" / "report.json").read_text())["last"]["eval_nll"]
    assert report["first"]["eval_nll"] == pytest.approx(before, abs=0.02)
    fresh = run(made / "three", made / "shards", **changes, model__adapter=LORA, train__steps=1)
    assert fresh["first"]["eval_nll"] - before > 0.1
    shutil.copytree(made / "one" / "adapters", made / "away" / "far" / "adapters")
    far = LORA | {"start": str(made / "away" / "far" / "adapters")}
    again = run(made / "six", made / "shards", **changes, model__adapter=far, train__steps=1)
    assert again["first"] == report["first"]
    with pytest.raises(ModelError, match=r"model\.adapter\.start: .*the adapter there has rank 2, here 4"):
        run(made / "four", made / "shards", **changes, model__adapter=start | {"rank": 4}, train__steps=1)


def test_adapters_over_adapters_are_not_written_apart(made: Path) -> None:
    values = overrides(made / "shards", model__path=str(made / "child"), model__adapter=LORA, train__steps=1,
                       ladder={"fixed": 4})  # fmt: skip
    train_command(load_config(None, values), QUIET, "sft", made / "five")
    assert (made / "five" / "model").is_dir() and not (made / "five" / "adapters").exists()
