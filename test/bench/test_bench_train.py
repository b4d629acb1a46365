# The training benchmark in small: both forms give one loss, and the plan of every preset fits its machine.
# Entry points: pytest.
# Times are not tested, only what they are times of.
"""Tests of bench/train.py and of the training presets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train.material import QUIET

from hildanext.bench.train import open_bench, run
from hildanext.config import load_config
from hildanext.models import preflight
from hildanext.models.preflight import estimate
from hildanext.train.plan import plan_command

CONFIGS = Path(__file__).resolve().parents[2] / "runs" / "configs"
GPU_BYTES = 8_000_000_000


SMALL = {"vocabulary": 50, "layers": 1, "hidden": 16, "heads": 2, "head_dim": 8, "ffn": 32}


def test_a_row_of_which_nothing_is_learned_costs_nothing_and_leaves_the_weights_finite() -> None:
    bench = open_bench(load_config(None, [f"bench.train.{k}={v}" for k, v in ({"length": 32} | SMALL).items()]))
    empty = replace(bench, batch=replace(bench.batch, learn=torch.zeros_like(bench.batch.learn)))
    assert [empty.timed(form, 16)[1] for form in (empty.ours, empty.plain)] == [0.0, 0.0]
    assert all(bool(torch.isfinite(weight).all()) for weight in bench.denoiser.parameters())


@pytest.mark.parametrize("length", [32, 512])
def test_both_forms_of_the_step_compute_the_same_loss(length: int, tmp_path: Path) -> None:
    values = [f"bench.train.{name}={value}" for name, value in ({"length": length} | SMALL).items()]
    values += ["bench.train.block=16", "bench.train.repeats=1", f"paths.runs={tmp_path}", "model.device=cpu"]
    values += [f"bench.train.steps={length // 16}"]
    report = run(load_config(None, values), QUIET)
    assert report["losses"]["plain"] == pytest.approx(report["losses"]["ours"], rel=1e-5)
    assert report["relative_to_mdlm"][str(length)] == 1.0
    assert set(report["memory"]) == ({"1", "last", "foretold"} if length == 32 else {"1", "20", "last", "foretold"})
    assert 0 < report["memory"]["1"] <= report["memory"]["last"]
    assert report["memory"]["foretold"] == pytest.approx(report["memory"]["last"], rel=0.25)
    assert report["attention"] == ("dense" if length == 32 else "sliced")


def test_memory_is_followed_under_autocast_where_training_uses_it(tmp_path: Path) -> None:
    values = [
        f"bench.train.{name}={value}" for name, value in ({"length": 32, "steps": 2, "repeats": 1} | SMALL).items()
    ]
    found = [
        run(load_config(None, [*values, f"paths.runs={tmp_path / dtype}", f"train.autocast={dtype}"]), QUIET)
        for dtype in ("none", "bfloat16")
    ]
    narrow, wide = (report["losses"]["ours"] for report in reversed(found))
    assert narrow != wide and narrow == pytest.approx(wide, rel=0.02)
    assert [report["autocast"] for report in found] == ["none", "bfloat16"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_preset_that_trains_has_a_plan(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "DATA", "ROWS", "TINYSTORIES", "DOLMA", "ANCHORS"):
        name = f"HILDANEXT_{name}"
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
    monkeypatch.setattr(preflight, "_around", lambda *given: {})  # a GPU has neither this process nor a C heap
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
