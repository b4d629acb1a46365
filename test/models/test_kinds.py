# Another kind of model, added by an entry point and nothing else: it loads, saves, is inspected, weighed and decoded.
# Entry points: pytest.
# What needs the Hugging Face network says so; what a kind is not made for is refused before it starts.
"""Tests of models/kind.py, kinds/ and the typed ways to the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.oracle import batch, noised
from models.table_kind import Entry, Table, TableDenoiser

from hildanext import cli, registry
from hildanext.config import load_config
from hildanext.config.decode import DecodeConfig
from hildanext.config.model import AdapterConfig, ModelConfig
from hildanext.core.types import Denoiser
from hildanext.data.tokenizers import load_tokenizer
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request
from hildanext.errors import ModelError
from hildanext.models.about import about
from hildanext.models.denoiser import HFDenoiser, hugging_face, module, network
from hildanext.models.inspection import conversion_report, inspect, parity
from hildanext.models.load import Loaded, load_model
from hildanext.models.lora import add_adapter
from hildanext.models.mask_token import EmbeddingNoise
from hildanext.models.meta import HildaMeta
from hildanext.models.preflight import estimate
from hildanext.models.quantise import Int8Denoiser, int8
from hildanext.models.save import save_model

Make = Callable[..., Any]
MEMBERS = tuple(name for name in vars(Denoiser) if name == "__call__" or not name.startswith("_"))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> TableDenoiser:
    found = {"hildanext.models": [Entry("table", Table)]}
    monkeypatch.setattr(registry, "entry_points", lambda group: found.get(group, []))
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 513, generator=rng)
    rows[:, :3] = -20.0  # the tokenizer's control tokens, which would end the text
    return TableDenoiser(rows, 512)


@pytest.fixture
def folder(table: TableDenoiser, assets: Path, tmp_path: Path) -> Path:
    words = load_tokenizer(assets / "stories260k-hf")
    return save_model(table, words, tmp_path / "table", HildaMeta(kind="table", block=4, parent="nothing"))


def test_the_kind_stands_in_the_folder_and_its_model_comes_back(folder: Path, table: TableDenoiser) -> None:
    assert json.loads((folder / "hildanext.json").read_text())["kind"] == "table"
    assert not (folder / "config.json").exists()
    loaded = load_model(ModelConfig(path=str(folder)))
    assert isinstance(loaded.denoiser, TableDenoiser) and torch.equal(loaded.denoiser.table, table.table)
    assert (loaded.meta.kind, loaded.meta.mask_id, loaded.meta.block) == ("table", 512, 4)


@pytest.mark.parametrize("cache", [True, False])
def test_another_kind_is_decoded_by_the_engine(folder: Path, table: TableDenoiser, cache: bool) -> None:
    engine = BlockEngine(load_model(ModelConfig(path=str(folder))), DecodeConfig(cache=cache))
    result = engine.generate(Request(prompt_ids=(5, 6, 7), max_new_tokens=13, temperature=0.0))
    assert list(result.token_ids) == table.table[3:16, :512].argmax(-1).tolist()


def test_another_kind_is_inspected_by_what_it_tells(folder: Path, capsys: Any, tmp_path: Path) -> None:
    found = inspect(str(folder))
    assert found["bytes"] > 4 * 64 * 513 and found["meta"]["kind"] == "table"
    assert cli.main(["inspect", str(folder), "--run-dir", str(tmp_path / "run")]) == 0
    assert "kind table, Table is no Hugging Face network" in capsys.readouterr().err
    assert conversion_report(load_model(ModelConfig(path=str(folder))))["parity"]["ok"]


def test_another_kind_is_weighed_by_its_own_footprint(folder: Path) -> None:
    found = estimate(load_config(None, [f"model.path={folder}"]), 64, training=False, available=2**30)
    assert found["parameters"] == found["total"] == 4 * 64 * 513


def test_a_frozen_second_model_may_be_of_another_kind(folder: Path, assets: Path) -> None:
    section = ModelConfig(path=str(assets / "stories260k-hf"))
    known = about(load_model(section), section)
    assert isinstance(known.load(str(folder)), TableDenoiser) and known.parent is None
    frozen = known.load(section.path)
    assert not any(parameter.requires_grad for parameter in module(frozen).parameters())
    assert known.origin == section.path


def test_a_second_model_of_another_tokenizer_is_refused_and_a_child_or_a_new_model_has_no_origin(assets: Path) -> None:
    section = ModelConfig(path="tiny")
    loaded = load_model(section)
    known = about(loaded, section)
    assert known.origin == "" == about(loaded, ModelConfig(path="new")).origin
    assert about(loaded, ModelConfig(path="tiny-parent")).origin == "tiny-parent"
    assert known.load("tiny-parent").mask_id == loaded.denoiser.mask_id
    with pytest.raises(ModelError, match="is id .* of its tokenizer, .* give one with the same tokenizer"):
        known.load(str(assets / "stories260k-hf"))


def test_a_use_the_kind_is_not_made_for_is_refused(folder: Path, assets: Path) -> None:
    loaded = load_model(ModelConfig(path=str(folder)))
    loaded.require("decode")
    for use in ("train", "export"):
        with pytest.raises(ModelError, match=f"kind table cannot be used to {use}, only to decode"):
            loaded.require(use)
        load_model(ModelConfig(path=str(assets / "stories260k-hf"))).require(use)


def test_export_of_another_kind_is_the_users_mistake(folder: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "out"
    assert cli.main(["export", "--model", str(folder), "--output", str(output)]) == 2
    assert "cannot be used to export" in capsys.readouterr().err and not output.exists()


@pytest.mark.parametrize(
    "use",
    [
        network, hugging_face, module, parity, lambda model: EmbeddingNoise(model, 1),
        lambda model: add_adapter(model, AdapterConfig(kind="lora")),
        lambda model: int8(Loaded(model, None, HildaMeta(), None, model.dtype, "", model.device)),
    ],
)  # fmt: skip
def test_what_needs_the_network_says_so(use: Callable[[Any], Any], table: TableDenoiser) -> None:
    with pytest.raises(ModelError, match="TableDenoiser h(olds no Hugging Face network|as no parameters to train)"):
        use(table)


def test_an_unknown_kind_is_named_with_the_nearest(folder: Path) -> None:
    path = folder / "hildanext.json"
    path.write_text(path.read_text().replace('"table"', '"tabel"'))
    with pytest.raises(ModelError, match=r"hildanext\.json: kind 'tabel'.*did you mean 'table'"):
        load_model(ModelConfig(path=str(folder)))


def test_a_folder_that_names_no_kind_is_a_hugging_face_one(assets: Path) -> None:
    loaded = load_model(ModelConfig(path=str(assets / "stories260k-hf")))
    assert loaded.meta.kind == "hf" and isinstance(loaded.denoiser, HFDenoiser)
    assert network(loaded.denoiser) is loaded.denoiser.model and module(loaded.denoiser) is loaded.denoiser


def test_a_denoiser_saved_as_another_kind_is_refused(table: TableDenoiser, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no Hugging Face network"):
        save_model(table, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def lacking(model: Any) -> list[str]:
    return [name for name in MEMBERS if not hasattr(model, name)]


def test_every_denoiser_has_all_that_the_protocol_declares(random_model: Make, table: TableDenoiser) -> None:
    model = HFDenoiser(random_model(), 66).eval()
    small = int8(Loaded(model, None, HildaMeta(), None, torch.float32, "", torch.device("cpu"))).denoiser
    assert {"mask_id", "window", "state_bytes", "noisy_features", "__call__"} <= set(MEMBERS)
    assert lacking(model) == lacking(small) == lacking(table) == []
    assert lacking(random_model()) != []


def test_an_int8_denoiser_differs_in_exactness_and_in_nothing_else_it_declares(random_model: Make) -> None:
    model = HFDenoiser(random_model(eos_token_id=5), 66, block_grid="per_document").eval()
    small = int8(Loaded(model, None, HildaMeta(), None, torch.float32, "", torch.device("cpu"))).denoiser
    assert isinstance(small, Int8Denoiser) and type(model) is HFDenoiser
    for name in (
        "mask_id",
        "vocab_size",
        "window",
        "block_grid",
        "shift",
        "dtype",
        "device",
        "takes_layout",
        "end_ids",
    ):
        assert getattr(small, name) == getattr(model, name), name
    assert (model.exact, small.exact) == (True, False) and small.end_ids == {5}
    assert small.state_bytes(7) == model.state_bytes(7)


def test_int8_features_and_head_are_those_of_the_weights_within_their_rounding(random_model: Make) -> None:
    model = HFDenoiser(random_model(), 66).eval()
    small = int8(Loaded(model, None, HildaMeta(), None, torch.float32, "", torch.device("cpu"))).denoiser
    data = batch(length=16)
    with torch.no_grad():
        heads = small.head(), model.head()
        features = [each.noisy_features(noised(data), data, 4, data.learn) for each in (small, model)]
    for found, expected in (heads, features):
        assert found.shape == expected.shape and 0 < (found - expected).norm() <= 0.1 * expected.norm()


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_state_bytes_are_what_the_layers_keep(family: str, random_model: Make) -> None:
    model = random_model(family)
    kept = model(input_ids=torch.arange(9)[None], use_cache=True).past_key_values
    held = sum(part.nbytes for layer in kept.layers for part in (layer.keys, layer.values))
    assert HFDenoiser(model, 66).state_bytes(9) == held > 0
