# hildanext models: every folder with what it says of itself, and what is wrong with one that cannot be used.
# Entry points: pytest.
# Folders are made by hand, so that the list is known; the bundled pair is compared with what loading it says.
"""Tests of models/listing.py and the command models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hildanext.cli import main
from hildanext.config import Config
from hildanext.models.listing import listing
from hildanext.models.load import load_model
from hildanext.models.meta import Base, HildaMeta


def folder(path: Path, weights: int = 0, **meta: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    if meta:
        (path / "hildanext.json").write_text(HildaMeta.model_validate(meta).text())
    if weights:
        (path / "model.safetensors").write_bytes(bytes(weights))
    return path


def test_the_list_says_of_each_folder_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, runs = tmp_path / "models", tmp_path / "runs"
    folder(models / "plain", 1000)
    folder(models / "fetched", 2000, history=[{"fetched": "org/fetched", "revision": "1"}])
    folder(models / "exports" / "child", 3000, block=32, mask_id=7, parent="plain@0123", run="r1")
    folder(models / "small", 5, kind="adapters", block=8, base=Base(name="plain", sha256="0" * 64))
    folder(models / "empty")
    (models / "damaged").mkdir()
    (models / "damaged" / "hildanext.json").write_text("{")
    (models / "one.gguf").write_bytes(b"GGUF....")
    folder(runs / "r1" / "model", 4000, block=4, run="r1")
    (runs / "r1" / "status.json").write_text("{}")
    folder(runs / "no-run" / "model", 1)
    assert main(["models", "--json", "--set", f"paths.models={models}", "--set", f"paths.runs={runs}"]) == 0
    shown = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(shown.out)["models"]}
    assert list(rows) == [
        "damaged", "empty", "child", "fetched", "one", "plain", "small", "r1", "tiny", "tiny-parent",
    ]  # fmt: skip
    told = {name: (row["converted"], row["block"], row["bytes"], row["origin"]) for name, row in rows.items()}
    assert told["plain"] == (False, None, 1000, "put here by hand")
    assert told["fetched"] == (False, None, 2000, "org/fetched")
    assert told["child"] == (True, 32, 3000, "plain, by run r1")
    assert told["small"] == (True, 8, 5, "adapters over plain")
    assert told["r1"] == (True, 4, 4000, "run r1") and told["one"][0] is None
    assert "hildanext.json" in rows["damaged"]["problem"] and "no weights" in rows["empty"]["problem"]
    assert "fetch NAME" in shown.err and "warning" in shown.err and "smollm2-135m" in shown.err


def test_the_bundled_pair_is_what_loading_it_says(tmp_path: Path) -> None:
    paths = Config.model_validate({"paths": {"models": str(tmp_path), "runs": str(tmp_path)}}).paths
    for row in listing(paths):
        loaded = load_model(Config.model_validate({"model": {"path": row["path"]}}).model)
        assert (row["mask_id"], row["block"]) == (loaded.meta.mask_id, loaded.meta.block)
        assert row["converted"] == (row["name"] == "tiny")
