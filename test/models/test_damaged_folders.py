# Model folders that are damaged or contradict themselves: each is one clear line, and none loads with random weights.
# Entry points: pytest.
# Each case changes one file of a copy of stories260k; the unchanged copy loads, so the guard is not always on.
"""Tests of the refusals of models/files.py, support.py, tensors.py and inspection.py."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hildanext.config import load_config
from hildanext.config.model import ModelConfig
from hildanext.errors import ModelError
from hildanext.models.denoiser import module
from hildanext.models.inspection import inspect
from hildanext.models.load import load_model
from hildanext.models.preflight import estimate
from hildanext.models.save import save_model


@pytest.fixture
def folder(assets: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(assets / "stories260k-hf", copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    return copy


def half(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def noise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(1, 256)) * 20)


def setting(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


def tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def negative_mask(folder: Path) -> None:
    (folder / "hildanext.json").write_text('{"mask_id": -3}')


def content(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_bytes(data) and None


CONFIGS = {
    "no JSON": content(b"{"), "empty": content(b""), "a number": content(b"3"), "null": content(b"null"),
    "a list": content(b"[]"), "binary": content(b"\xff\xfe\0"), "a type that is no word": setting("model_type", 5),
    "width as text": setting("hidden_size", "x"), "negative width": setting("hidden_size", -1),
    "no heads": setting("num_attention_heads", 0), "no key heads": setting("num_key_value_heads", 0),
    "layers as text": setting("num_hidden_layers", "a"), "negative vocabulary": setting("vocab_size", -5),
    "unknown activation": setting("hidden_act", "zzz"), "layers of no kind": setting("layer_types", ["x"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_broken_configuration_is_one_line_before_memory_is_counted_and_at_load(case: str, folder: Path) -> None:
    CONFIGS[case](folder)
    config = load_config(None, [f"model.path={folder}", "model.device=cpu"])
    for read in (lambda: estimate(config, 64), lambda: load_model(config.model)):
        with pytest.raises(ModelError, match=str(folder)) as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("device", ["meta", "nonesuch", "cuda:99", "cpu:x"])
def test_a_device_that_does_not_compute_is_one_line(device: str) -> None:
    with pytest.raises(ModelError, match=f"model.device '{device}'") as caught:
        load_model(ModelConfig(path="tiny", device=device))
    assert len(str(caught.value).splitlines()) == 1


def added(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        state = {**load_file(path), name: torch.ones(8)}
        path.unlink()
        save_file(state, path, {"format": "pt"})

    return change


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def indexed(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(state, folder / "model-00001.safetensors", {"format": "pt"})
    places = dict.fromkeys(state, "model-00001.safetensors") | {"model.norm.weight": "model-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


CASES = {
    "half the weights": (half, "cannot be loaded"),
    "no safetensors": (noise, "cannot be loaded"),
    "more layers than weights": (setting("num_hidden_layers", 7), "18 tensors of config.json are not in the weights"),
    "another width": (setting("intermediate_size", 180), "do not fit config.json"),
    "unknown type": (setting("model_type", "nonesuch"), "nonesuch"),
    "tokenizer": (tokenizer, "tokenizer cannot be read"),
    "negative mask": (negative_mask, "rows 0 to 511"),
    "unknown norms": (
        added("model.layers.0.self_attn.q_norm.weight"),
        "1 tensors of the weights are unknown to config",
    ),
    "layers dropped": (setting("num_hidden_layers", 2), "tensors of the weights are unknown to config.json"),
    "an adapter beside": (adapter, "adapter_config.json lies beside the weights"),
    "gptq": (setting("quantization_config", {"quant_method": "gptq", "bits": 4}), r"are quantised \(gptq\)"),
    "bitsandbytes": (
        setting("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"are quantised \(bitsandbytes\)",
    ),
    "a shard of the index is gone": (indexed, "model-00002.safetensors of model.safetensors.index.json is missing"),
    "length-dependent positions": (
        setting("rope_parameters", {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}),
        "rotary type dynamic",
    ),
}
NOT_DAMAGE = (
    "unknown norms", "layers dropped", "an adapter beside", "gptq", "bitsandbytes", "length-dependent positions",
    "another width",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_folder_is_one_line_that_names_it(case: str, folder: Path) -> None:
    damage, words = CASES[case]
    load_model(ModelConfig(path=str(folder)))
    damage(folder)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(ModelConfig(path=str(folder)))
    assert "\n" not in str(caught.value)
    assert case not in NOT_DAMAGE or "are damaged" not in str(caught.value)


def test_files_that_transformers_would_not_load_are_not_counted(folder: Path) -> None:
    before = inspect(str(folder))
    save_file({"other": torch.ones(100)}, folder / "another.safetensors")
    assert inspect(str(folder)) == before
    load_model(ModelConfig(path=str(folder)))


def test_causal_masks_stored_by_old_versions_do_not_count_as_unknown(folder: Path) -> None:
    before = {
        name: value.clone()
        for name, value in module(load_model(ModelConfig(path=str(folder))).denoiser).state_dict().items()
    }
    added("model.layers.0.self_attn.rotary_emb.inv_freq")(folder)
    found = module(load_model(ModelConfig(path=str(folder))).denoiser).state_dict()
    assert found.keys() == before.keys() and all(torch.equal(found[name], before[name]) for name in before)


def test_a_file_that_may_not_be_read_is_not_called_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hildanext.models.tensors.os.access", lambda *_: False)
    with pytest.raises(ModelError, match="may not be read by this user"):
        load_model(ModelConfig(path=str(folder)))


def test_weights_get_the_mode_that_the_umask_gives(folder: Path, tmp_path: Path) -> None:
    loaded, before = load_model(ModelConfig(path=str(folder))), os.umask(0o027)
    try:
        written = save_model(loaded.denoiser, loaded.tokenizer, tmp_path / "out")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in written.iterdir()} == {0o640}


@pytest.mark.parametrize("damage", [half, noise, setting("model_type", "nonesuch"), tokenizer])
def test_inspect_refuses_what_it_cannot_read(damage: Callable[[Path], None], folder: Path) -> None:
    inspect(str(folder))
    damage(folder)
    with pytest.raises(ModelError):
        inspect(str(folder))


def test_a_tokenizer_with_more_ids_than_rows_gets_a_row_for_each(folder: Path) -> None:
    from transformers import AutoTokenizer

    known = AutoTokenizer.from_pretrained(folder)
    known.add_tokens(["<extra one>", "<extra two>"])
    known.add_special_tokens({"mask_token": "<|mask|>"})
    known.save_pretrained(folder)
    loaded = load_model(ModelConfig(path=str(folder)))
    weight = loaded.denoiser.head()
    assert (loaded.denoiser.mask_id, len(weight)) == (514, 515)
    assert torch.allclose(weight[512:], weight[:512].mean(0).expand(3, -1), atol=1e-6)
    assert loaded.denoiser.model.get_input_embeddings().weight is weight
