# What a run goes on from: whole checkpoints of its own directory, with the settings they were trained with.
# Entry points: pytest.
# The oracle of a resumed run is the uninterrupted one; of a refused one, the directory as it was, byte for byte.
"""Tests of train/resume.py and of what open_training and the recorder make of it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.material import configuration, losses, run

from hildanext.api.job_files import _eta
from hildanext.cli import main
from hildanext.errors import HildaError
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.run_dir import RunDir, read_status
from hildanext.train.checkpoint import ASIDE, POINTER, STATE, Checkpoints, read_state, require_whole
from hildanext.train.loop import Trainer
from hildanext.train.recorder import RunRecorder
from hildanext.train.resume import find_checkpoint

PLAIN: dict[str, Any] = {"objective__type": "autoregressive", "train__steps": 4, "train__keep_last": 9}


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    run(path, shards, **PLAIN, train__checkpoint_every=1, train__eval_every=2)
    return path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def step(path: Path, number: int) -> Path:
    return path / "checkpoints" / f"step-{number:06d}"


def refused(start: Callable[[], Any], words: str) -> str:
    with pytest.raises(HildaError, match=words) as error:
        start()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_directory_with_checkpoints_or_a_model_is_not_begun_in_again(copy: Path, shards: Path) -> None:
    before = everything(copy)
    said = refused(lambda: run(copy, shards, **PLAIN), "holds the checkpoints of an earlier run, the last step-000004")
    assert "train.resume=latest" in said and "--run-dir" in said
    words = ["eval", "--run-dir", str(copy), "--set", 'eval.tasks=[{"type": "nll"}]']
    assert main(words) == 2
    other = str(step(copy.parent / "other", 4))
    refused(lambda: run(copy, shards, **PLAIN, train__resume=other), "holds the checkpoints of an earlier run")
    assert everything(copy) == before
    shutil.rmtree(copy / "checkpoints")
    assert "resume" not in refused(lambda: run(copy, shards, **PLAIN), "holds the model of an earlier run")


def _state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        state = json.loads((folder / STATE).read_text())
        change(state)
        (folder / STATE).write_text(json.dumps(state))

    return damage


def _old(after: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        _state(lambda state: [state.pop(name) for name in ("files", "sha256")])(folder)
        after(folder)

    return damage


def _cut(name: str, size: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def _pointer(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(POINTER + b"/spec/v1\noid sha256:0\nsize 9\n")


OPTIMIZER, WEIGHTS = "trainer/optimizer.pt", "model.safetensors"
DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (_cut(str(STATE), 0), r"state.json: empty \(0 bytes\)"), (_cut(str(STATE), 60), "is no checkpoint"),
    (_pointer(str(STATE)), "state.json: a Git LFS pointer"), (_state(lambda state: state.pop("loader")), "damaged"),
    (lambda folder: (folder / STATE).unlink(), "is no checkpoint"),
    (_cut(OPTIMIZER, 0), "optimizer.pt has 0 bytes"), (_cut(OPTIMIZER, 300), "optimizer.pt has 300 bytes"),
    (_pointer(OPTIMIZER), r"optimizer.pt has \d+ bytes"), (_cut(WEIGHTS, 500), "model.safetensors has 500 bytes"),
    (_old(_cut(OPTIMIZER, 0)), r"optimizer.pt is empty \(0 bytes\)"),
    (_old(_cut(OPTIMIZER, 300)), "optimizer.pt is cut"),
    (_old(_pointer(OPTIMIZER)), "optimizer.pt is a Git LFS pointer"),
    (_old(_state(lambda state: state.pop("skipped"))), "state.json lacks skipped"),
    (_old(_state(lambda state: [state.pop(name) for name in ("skipped", "loader")])), "lacks skipped and loader"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_latest_falls_back_to_the_older_whole_checkpoint_and_says_what_is_wrong_with_the_newer(
    damage: Callable[[Path], Any], words: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(step(copy, 4))
    refused(lambda: require_whole(step(copy, 4)), words)
    assert find_checkpoint("latest", copy / "checkpoints", Console()) == step(copy, 3)
    said = capsys.readouterr().err
    assert "step-000004" in said and "going on from the older" in said and said.count("\n") == 1
    for number in (1, 2, 3):
        damage(step(copy, number))
    refused(lambda: find_checkpoint("latest", copy / "checkpoints", Console()), "no checkpoint is whole: .*; restore")


def test_a_run_goes_on_over_a_damaged_checkpoint_which_is_moved_aside(copy: Path, whole: Path, shards: Path) -> None:
    _cut(OPTIMIZER, 0)(step(copy, 4))
    (copy / "checkpoints" / "step-000003.mine").mkdir()
    run(copy, shards, **PLAIN, train__resume="latest")
    assert losses(copy) == losses(whole) and "going on from the older" in (copy / "log.txt").read_text()
    require_whole(step(copy, 4))
    assert (copy / "checkpoints" / ASIDE / "step-000004" / OPTIMIZER).stat().st_size == 0
    assert (copy / "checkpoints" / "step-000003.mine").is_dir()


def test_going_back_to_an_older_checkpoint_keeps_no_newer_one_of_the_line_left(
    copy: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {**PLAIN, "train__checkpoint_every": 1, "train__keep_last": 1, "train__keep_best": 0, "train__eval_every": 0}
    run(copy, shards, **few, train__resume=str(step(copy, 1)))
    checkpoints = Checkpoints(copy / "checkpoints")
    assert [path.name for path in checkpoints.all()] == ["step-000004"]
    assert "step-000002, step-000003, step-000004: later than step 1, now in" in capsys.readouterr().err
    step(copy, 3).mkdir()
    assert [path.name for path in checkpoints.set_aside(2)] == ["step-000003.1", "step-000004.1"]


def test_a_refused_resume_changes_nothing(copy: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    folder = tmp_path / "shards" / "train"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["tokens.bin"]["sha256"] = "0" * 64
    before = everything(copy)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"optimizer__lr": 0.001}, "lr 0.003 before, 0.001 now; resume with --config .*run/config.json, or say"),
        ({"optimizer__name": "muon"}, "optimizer.name adamw before, muon now"),
        ({"optimizer__schedule": "linear", "optimizer__warmup": 0.5}, "schedule cosine.*warmup 0.03 before, 0.5 now"),
        ({"train__autocast": "bfloat16"}, "train.autocast none before, bfloat16 now"),
        ({"model__dtype": "bfloat16"}, "dtype torch.float32 before, torch.bfloat16 now"),
        ({"model__path": "tiny-parent"}, "model.path new before, tiny-parent now"),
        ({"model__adapter": {"kind": "lora"}}, "model.adapter.kind=none, here it is lora"),
        ({"train__steps": 5}, "ladder differs"), ({"seed": 1}, "of other data"), ({"train__batch": 3}, "no multiple"),
    ]  # fmt: skip
    for changes, words in wrong:
        refused(lambda: run(copy, shards, **{**PLAIN, **changes}, train__resume=str(step(copy, 2))), words)  # noqa: B023
        assert everything(copy) == before, changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    other = tmp_path / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hildanext.data.shards.damage", lambda *values: "")
        refused(
            lambda: run(copy, other, **PLAIN, train__resume="latest"), "other data.*override_recorded=true to begin"
        )
        patch.undo()
        patch.setitem(sys.modules, "trackio", None)
        changes = {**PLAIN, "train__trackers": ["trackio"], "train__resume": str(step(copy, 2))}
        refused(lambda: run(copy, shards, **changes), "trackio is not installed")
    (copy / "metrics.jsonl").write_bytes(b"\xff")
    assert everything(copy) != before and everything(copy).keys() == before.keys()
    before = everything(copy)
    refused(lambda: run(copy, shards, **PLAIN, train__resume=str(step(copy, 2))), "metrics.jsonl: not text")
    refused(lambda: run(copy.parent / "none", shards, **PLAIN, train__resume="latest"), "holds no checkpoint")
    assert everything(copy) == before and read_status(copy)["state"] == "done"


def test_settings_that_changed_are_listed_and_those_of_the_past_are_taken_where_it_is_said(
    copy: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**PLAIN, "train__eval_rows": 1, "train__shorten": 0.5, "train__resume": str(step(copy, 3))}
    run(copy, shards, **changes)
    said, log = capsys.readouterr().err, (copy / "log.txt").read_text()
    assert "train.shorten 0.0 before, 0.5 now: the run goes on, but not bit for bit" in said
    assert "train.eval_rows 2 before, 1 now; " in log or "train.eval_rows 2 before, 1 now: the losses stay" in log
    assert "evaluations before and after this point are not of the same" in said
    assert json.loads((copy / "config.json").read_text())["train"]["shorten"] == 0.5
    asked = {"optimizer__lr": 0.5, "optimizer__weight_decay": 0.25, "model__dtype": "bfloat16"}
    run(copy, shards, **{**changes, **asked}, train__override_recorded=True, seed=7)
    said = capsys.readouterr().err
    for words in ("optimizer.lr 0.003 before, 0.5 now", "seed 0 before, 7 now", "dtype torch.float32 before"):
        assert words in said
    assert "the rows begin anew" in said
    state = torch.load(step(copy, 4) / OPTIMIZER, weights_only=True)
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.25, 0.0}
    assert read_state(step(copy, 4))["settings"]["optimizer.lr"] == 0.5


def test_another_optimiser_begins_anew_where_it_is_said(
    copy: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**PLAIN, "optimizer__name": "muon", "train__override_recorded": True}
    run(copy, shards, **changes, train__resume=str(step(copy, 3)))
    said = capsys.readouterr().err
    assert "its moments begin anew" in said and "optimizer.name adamw before, muon now" in said


def test_a_resume_with_the_same_settings_says_nothing_of_changes_also_from_before_they_were_kept(
    copy: Path, whole: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _old(_state(lambda state: state.pop("settings")))(step(copy, 3))
    refused(lambda: run(copy, shards, **PLAIN, optimizer__lr=1.0, train__resume=str(step(copy, 3))), "lr 0.003 before")
    run(copy, shards, **PLAIN, train__checkpoint_every=1, train__eval_every=2, train__resume=str(step(copy, 3)))
    assert losses(copy) == losses(whole) and " before, " not in capsys.readouterr().err
    (copy / "config.json").unlink()
    _old(_state(lambda state: state.pop("settings")))(step(copy, 4))
    run(copy, shards, **PLAIN, train__resume="latest")
    assert "does not record the settings" in capsys.readouterr().err


def test_the_time_left_counts_what_this_process_did(copy: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("hildanext.progress.time.monotonic", lambda: clock[0])
    with Console(quiet=True).bar("training", 1000, first=900) as bar:
        clock[0] += 50
        bar.advance(10)
        assert "training: 910/1000 (91%), 50 s, 7 min 30 s left" in bar._line()
    with Console(quiet=True).bar("training", 1000, first=900) as bar:
        assert "left" not in bar._line()
    monkeypatch.setattr("hildanext.api.job_files.time.time", lambda: 1050.0)
    status = {"step": 910, "total": 1000, "first_step": 900, "started": "1970-01-01T00:00:00+00:00"}
    assert _eta({**status, "begun": "1970-01-01T00:16:40+00:00"}, "running") == pytest.approx(450)
    assert _eta({**status, "step": 900}, "running") is None
    monkeypatch.undo()
    started = read_status(copy)["started"]
    run(copy, shards, **PLAIN, train__resume=str(step(copy, 3)))
    status = read_status(copy)
    assert (status["started"], status["first_step"], status["step"]) == (started, 3, 4) and status["begun"] > started


def asked_to_finish(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    written = RunRecorder.write

    def write(self: RunRecorder, record: dict[str, Any]) -> None:
        written(self, record)
        if "loss" in record and record["step"] == number:
            (self.training.run.path / "finish").touch()

    monkeypatch.setattr(RunRecorder, "write", write)


def test_a_run_asked_to_finish_writes_its_model_and_can_go_on_later(
    whole: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        asked_to_finish(patch, 2)
        report = run(tmp_path / "run", shards, **PLAIN, train__eval_every=2)
    assert report["steps"] == 3 and read_status(tmp_path / "run")["state"] == "done"
    assert "ended as asked at step 3 of 4" in capsys.readouterr().err and not (tmp_path / "run" / "finish").exists()
    loaded = load_model(configuration(shards, model__path=str(tmp_path / "run")).model)
    assert loaded.meta.history[-1]["steps"] == 3
    ours, theirs = (load_file(path / WEIGHTS) for path in (tmp_path / "run" / "model", step(whole, 3)))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (tmp_path / "run" / "finish").touch()
    run(tmp_path / "run", shards, **PLAIN, train__eval_every=2, train__resume="latest")
    assert losses(tmp_path / "run") == losses(whole)
    assert "finish: was there before the run began" in capsys.readouterr().err


def test_an_error_in_training_marks_a_resumed_run_failed(
    copy: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(Trainer, "fit", broken)
    with pytest.raises(ValueError, match="planted"):
        run(copy, shards, **PLAIN, train__resume=str(step(copy, 2)))
    assert read_status(copy)["state"] == "failed" and "planted" in read_status(copy)["error"]
    assert RunDir.create(configuration(shards), "convert-wsd", copy, resume=True).path == copy
