# Merging checkpoints: identity, linearity, order, ties, refusals, and evaluation of the result (invariant I-33).
# Entry points: pytest.
# Members are written with safetensors directly; the oracle is a float64 mean in numpy.
"""Tests of train/merge.py."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from train.material import QUIET, configuration, run, stop_after
from transformers import AutoModelForCausalLM

from hildanext.cli import main
from hildanext.config import load_config
from hildanext.config.model import ModelConfig
from hildanext.errors import HildaError, Interrupted, ModelError
from hildanext.models.load import name_of
from hildanext.models.meta import HildaMeta
from hildanext.models.tensors import stored_dtype
from hildanext.progress import Console
from hildanext.run_dir import RunDir
from hildanext.train import merge
from hildanext.train.merge import Choice, merge_folders, merge_run
from hildanext.train.model_files import written_dtype


def member(folder: Path, seed: int, dtype: torch.dtype = torch.float32, **meta: Any) -> Path:
    folder.mkdir()
    rng = torch.Generator().manual_seed(seed)
    tensors = {"a": torch.randn(5, 3, generator=rng).to(dtype), "b": torch.randn(7, generator=rng).to(dtype)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "hildanext.json").write_text(json.dumps({"format": 1, **meta}))
    (folder / "trainer").mkdir()
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_one_member_is_the_identity_and_so_are_equal_ones(tmp_path: Path) -> None:
    one = member(tmp_path / "one", 1)
    for count in (1, 3):
        merged = read(merge_folders([one] * count, tmp_path / f"merged{count}"))
        assert all(torch.equal(merged[name], value) for name, value in read(one).items())
    assert not (tmp_path / "merged1" / "trainer").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_is_a_float64_mean_in_any_order(dtype: torch.dtype, tmp_path: Path) -> None:
    members = [member(tmp_path / str(seed), seed, dtype) for seed in range(3)]
    merged = read(merge_folders(members, tmp_path / "merged"))
    turned = read(merge_folders(members[::-1], tmp_path / "turned"))
    for name, value in merged.items():
        oracle = np.mean([read(path)[name].double().numpy() for path in members], axis=0)
        assert torch.equal(value, torch.from_numpy(oracle).to(dtype))
        assert (value - turned[name]).abs().max() <= 1e-7


def test_members_in_float32_become_a_model_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    members = [member(tmp_path / str(seed), seed) for seed in range(2)]
    (members[0] / "config.json").write_text('{"dtype": "float32", "hidden_size": 3}')
    output = merge_folders(members, tmp_path / "merged", dtype=torch.bfloat16)
    for name, value in read(output).items():
        oracle = sum(read(path)[name].double() for path in members) / 2
        assert torch.equal(value, oracle.to(torch.bfloat16))
    assert json.loads((output / "config.json").read_text()) == {"dtype": "bfloat16", "hidden_size": 3}


@pytest.mark.parametrize(("stored", "asked", "wanted"), [
    (torch.bfloat16, "auto", torch.bfloat16), (torch.bfloat16, "float32", None), (torch.float32, "auto", None),
    (torch.float16, "auto", None),
])  # fmt: skip
def test_weights_go_back_to_the_parents_bfloat16_unless_told_otherwise_and_that_is_said(
    stored: torch.dtype, asked: str, wanted: torch.dtype | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = member(tmp_path / "parent", 1, stored)
    model = ModelConfig.model_validate({"path": str(parent), "dtype": asked})
    assert written_dtype(model, torch.float32, Console()) == wanted
    assert ("written as bfloat16" in capsys.readouterr().err) == (wanted is not None)


def test_a_run_without_a_checkpoint_says_what_it_is_waiting_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ModelError, match="that is no run; give a run directory"):
        Choice().folders(run, QUIET)
    directory = RunDir.create(load_config(), "convert-wsd", run)
    with directory.running(), pytest.raises(ModelError, match="in training and has saved none yet"):
        Choice().folders(run, QUIET)
    with pytest.raises(ModelError, match="name the members"):
        Choice().folders(run, QUIET)


def test_a_checkpoint_that_its_run_removes_while_it_is_merged_is_named(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = member(tmp_path / "step-000002", 1)
    monkeypatch.setattr(merge, "_mean", lambda *given: shutil.rmtree(folder) or read(folder))
    with pytest.raises(ModelError, match=r"is in training and removed step-000002 meanwhile .*; merge again"):
        merge_run(configuration(shards), QUIET, tmp_path, Choice((str(folder),)), None)
    monkeypatch.setattr(merge, "_mean", lambda *given: read(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        merge_run(configuration(shards), QUIET, tmp_path, Choice((str(member(tmp_path / "other", 1)),)), None)


def test_members_that_differ_are_refused(tmp_path: Path) -> None:
    one, other = member(tmp_path / "one", 1), member(tmp_path / "other", 2, mask_id=5)
    with pytest.raises(ModelError, match="mask_id is 5"):
        merge_folders([one, other], tmp_path / "merged")
    save_file({"a": torch.zeros(5, 4), "b": torch.zeros(7)}, other / "model.safetensors")
    with pytest.raises(ModelError, match=r"first a \(\(5, 4\) against \(5, 3\)\)"):
        merge_folders([one, other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_best_checkpoints_of_a_run_merge_into_a_tied_model_that_is_evaluated(shards: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"objective__type": "autoregressive", "train__steps": 6}
    run(tmp_path, shards, **changes, train__checkpoint_every=2, train__eval_every=2, train__keep_best=3)
    report = merge_run(configuration(shards, **changes), QUIET, tmp_path, Choice(best=2), None)
    assert len(report["members"]) == 2
    assert report["eval_nll"].keys() == {Path(path).name for path in report["members"]} | {"merged"}
    model = AutoModelForCausalLM.from_pretrained(report["model"])
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_a_model_folder_of_another_run_can_be_a_member(shards: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"objective__type": "autoregressive", "train__steps": 2}
    run(tmp_path / "base", shards, **changes)
    later = {**changes, "model__path": str(tmp_path / "base" / "model")}
    run(tmp_path / "later", shards, **later, train__checkpoint_every=2)
    members = ("step-000002", str(tmp_path / "base" / "model"))
    report = merge_run(configuration(shards, **later), QUIET, tmp_path / "later", Choice(members), None)
    assert report["eval_nll"].keys() == {"step-000002", "base/model", "merged"}
    mean, two = read(Path(report["model"])), [read(Path(path)) for path in report["members"]]
    assert all(torch.equal(value, (two[0][name] + two[1][name]) / 2) for name, value in mean.items())
    assert any(not torch.equal(two[0][name], two[1][name]) for name in mean)
    assert HildaMeta.read(Path(report["model"])).history[-1] == {"merged": ["step-000002", "base/model"]}


def test_a_member_that_is_nowhere_is_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no checkpoint step-000009 in .*; name a checkpoint or a folder"):
        merge_run(configuration(shards), QUIET, tmp_path, Choice(("step-000009",)), None)


def test_members_of_one_name_are_scored_apart_and_the_mean_is_written_as_the_run_would(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"objective__type": "autoregressive", "train__steps": 2, "train__checkpoint_every": 2}
    for name in ("one", "two"):
        run(tmp_path / name, shards, **changes, seed=len(name) + (name == "two"))
    members = ("step-000002", str(tmp_path / "two" / "checkpoints" / "step-000002"))
    monkeypatch.setattr(merge, "written_dtype", lambda *given: torch.bfloat16)
    report = merge_run(configuration(shards, **changes), QUIET, tmp_path / "one", Choice(members), None)
    assert report["eval_nll"].keys() == {*report["members"], "merged"}
    assert stored_dtype(Path(report["model"])) == torch.bfloat16


def test_a_member_is_not_replaced_by_the_mean(tmp_path: Path) -> None:
    one, other = member(tmp_path / "one", 1), member(tmp_path / "other", 2)
    before = read(other)
    with pytest.raises(ModelError, match="name another folder with --output"):
        merge_folders([one, other], tmp_path / "one" / ".." / "other")
    assert all(torch.equal(value, before[name]) for name, value in read(other).items())


def test_a_relative_model_folder_is_called_by_its_runs_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "base")
    assert merge._label(Path("model")) == "base/model" and name_of(Path("model")) == "base"


@pytest.fixture(scope="module")
def adapted(shards: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of adapters stopped at step 4 of 8 after checkpoints at 2 and 4, none of them evaluated."""
    pytest.importorskip("peft")
    path = tmp_path_factory.mktemp("adapted") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="step 4"):
        stop_after(patch, 3, signal.SIGTERM)
        run(path, shards, **ADAPTED, model__path=str(parent))
    return path


ADAPTED: dict[str, Any] = {"model__adapter": {"kind": "lora", "rank": 4}, "train__checkpoint_every": 2}


def by_hand(parent: Path, checkpoint: Path, alpha: float = 32.0, rank: int = 4) -> dict[str, torch.Tensor]:
    """W + alpha / rank * B A of every adapted matrix, in float64."""
    adapter, found = load_file(checkpoint / "trainer" / "adapter.safetensors"), read(parent)
    for name in [name for name in adapter if "lora_A" in name]:
        place = name.partition(".lora_A")[0]
        down, up = adapter[name].double(), adapter[name.replace("lora_A", "lora_B")].double()
        found[f"{place}.weight"] = found[f"{place}.weight"].double() + alpha / rank * up @ down
    return found


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all((ours[n].double() - theirs[n]).abs().max() < 1e-6 for n in theirs)


def test_a_stopped_run_of_adapters_becomes_a_model_that_generates(
    adapted: Path, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--model", str(adapted), "--prompt", "the cat"]) == 2
    assert f"merge-checkpoints {adapted} --last 1` makes a model" in capsys.readouterr().err
    assert main(["generate", "--model", str(adapted / "checkpoints" / "step-000004"), "--prompt", "the cat"]) == 2
    assert f"merge-checkpoints {adapted} --members step-000004` makes a model" in capsys.readouterr().err
    assert main(["merge-checkpoints", str(adapted), "--best", "1"]) == 0
    assert "no checkpoint of" in (said := capsys.readouterr().err) and "was evaluated" in said
    newest = by_hand(parent, adapted / "checkpoints" / "step-000004")
    assert close(read(adapted / "merged"), newest) and any(
        not torch.equal(newest[n], w) for n, w in read(parent).items()
    )
    meta = HildaMeta.read(adapted / "merged")
    assert (meta.block, meta.run, meta.parent) == (8, "run", parent.parent.name)
    assert meta.history[-2]["steps"] == 4 and meta.history[-1] == {"merged": ["step-000004"]}
    assert not list((adapted / "merged").glob("folded*")) and not (adapted / "merged" / "trainer").exists()
    words = ["--prompt", "the cat", "--max-new-tokens", "4", "--set", "model.device=cpu"]
    assert main(["generate", "--model", str(adapted / "merged"), *words]) == 0
    assert main(["generate", "--model", str(adapted), *words]) == 2
    assert f"its checkpoints were merged into {adapted / 'merged'}" in capsys.readouterr().err


def test_several_checkpoints_of_adapters_are_folded_and_averaged_also_as_a_job_of_other_settings(
    adapted: Path, shards: Path, parent: Path, tmp_path: Path
) -> None:
    output = tmp_path / "merged"
    job = configuration(shards, model__path="tiny")
    report = merge_run(job, QUIET, adapted, Choice(last=2), output)
    assert [Path(path).name for path in report["members"]] == ["step-000004", "step-000002"]
    two = [by_hand(parent, Path(path)) for path in report["members"]]
    assert close(read(output), {name: (two[0][name] + two[1][name]) / 2 for name in two[0]})
    assert report["eval_nll"]["step-000004"] != report["eval_nll"]["step-000002"]


def test_a_damaged_checkpoint_is_left_out_of_the_best_and_refused_by_name(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"objective__type": "autoregressive", "train__steps": 2}
    run(tmp_path, shards, **changes, train__checkpoint_every=1, train__eval_every=1)
    (tmp_path / "checkpoints" / "step-000002" / "trainer" / "state.json").write_bytes(b"")
    report = merge_run(configuration(shards, **changes), QUIET, tmp_path, Choice(best=2), None)
    assert [Path(path).name for path in report["members"]] == ["step-000001"]
    assert "step-000002" in (said := capsys.readouterr().err) and "it is left out" in said
    with pytest.raises(HildaError, match=r"state.json: empty \(0 bytes\)"):
        merge_run(configuration(shards, **changes), QUIET, tmp_path, Choice(("step-000002",)), None)


def test_the_command_merges_the_run_of_the_model_path_when_none_is_named(shards: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"objective__type": "autoregressive", "train__steps": 4}
    run(tmp_path / "base", shards, **changes, train__checkpoint_every=2, train__eval_every=2)
    job = ["merge-checkpoints", "--config", str(tmp_path / "base" / "config.json"), "--run-dir", str(tmp_path / "job")]
    assert main([*job, "--set", f"model.path={tmp_path / 'base' / 'model'}"]) == 0
    assert (tmp_path / "base" / "merged" / "model.safetensors").is_file()
    assert main([*job, "--set", "model.path=tiny"]) == 2
