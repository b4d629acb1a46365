# The training benchmark in small: both forms give one loss, and the plan of every preset fits its machine.
# Entry points: pytest.
# Times are not tested, only what they are times of.
"""Tests of bench/train.py and of the training presets."""

from __future__ import annotations

from pathlib import Path

import pytest
from train.material import QUIET

from hildanext.bench.train import run
from hildanext.config import load_config
from hildanext.models.preflight import estimate
from hildanext.train.plan import plan_command

CONFIGS = Path(__file__).resolve().parents[2] / "runs" / "configs"
GPU_BYTES = 8_000_000_000


@pytest.mark.parametrize("length", [32, 512])
def test_both_forms_of_the_step_compute_the_same_loss(length: int, tmp_path: Path) -> None:
    small = {"length": length, "vocabulary": 50, "layers": 1, "hidden": 16, "heads": 2, "head_dim": 8, "ffn": 32}
    values = [f"bench.train.{name}={value}" for name, value in small.items()]
    values += ["bench.train.block=16", "bench.train.repeats=1", f"paths.runs={tmp_path}", "model.device=cpu"]
    values += [f"bench.train.steps={length // 16}"]
    report = run(load_config(None, values), QUIET)
    assert report["losses"]["plain"] == pytest.approx(report["losses"]["ours"], rel=1e-5)
    assert report["relative_to_mdlm"][str(length)] == 1.0
    assert set(report["memory"]) == ({"1", "last", "foretold"} if length == 32 else {"1", "20", "last", "foretold"})
    assert 0 < report["memory"]["1"] <= report["memory"]["last"]
    assert report["memory"]["foretold"] == pytest.approx(report["memory"]["last"], rel=0.25)
    assert report["attention"] == ("dense" if length == 32 else "sliced")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_preset_that_trains_has_a_plan(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HILDANEXT_MODEL", "HILDANEXT_DATA", "HILDANEXT_TINYSTORIES", "HILDANEXT_DOLMA"):
        monkeypatch.setenv(name, "nowhere")
    config = load_config(path)
    untrained = config.model.model_copy(
        update={"path": "new", "new": config.model.new.model_copy(update={"tokenizer": ""})}
    )
    plan = plan_command(config.model_copy(update={"model": untrained}), QUIET)
    assert sum(stage["steps"] for stage in plan["stages"]) == plan["steps"]


@pytest.mark.parametrize("name", ["qwen3_0.6b_8gb", "qwen3_0.6b_8gb_frozen"])
def test_the_8_gb_presets_fit_by_the_preflight(name: str, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILDANEXT_MODEL", str(assets / "qwen3-0.6b-config"))
    monkeypatch.setenv("HILDANEXT_DATA", "nowhere")
    config = load_config(CONFIGS / f"{name}.json")
    assert 2 * config.tokenize.window <= 1024
    found = estimate(config, config.tokenize.window, available=GPU_BYTES)
    assert found["fits"], found
    whole = config.model_copy(
        update={
            "optimizer": config.optimizer.model_copy(update={"freeze_embeddings": False, "name": "adamw"}),
            "model": config.model.model_copy(update={"adapter": load_config().model.adapter}),
        }
    )
    assert not estimate(whole, config.tokenize.window, available=GPU_BYTES)["fits"]
