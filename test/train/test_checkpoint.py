# Checkpoints: whole or absent, kept by age and by score, refused when unfinished; kill -9 and a full disk.
# Entry points: pytest.
# A full disk is a write that raises ENOSPC half way; kill -9 is a real signal to a real process.
"""Tests of train/checkpoint.py."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from train.material import losses, overrides, run, stop_after
from waiting import until

from hildanext.disk import fingerprints
from hildanext.errors import HildaError, Interrupted, ModelError, RunError
from hildanext.models.load import model_folder
from hildanext.train import model_files
from hildanext.train.checkpoint import STATE, Checkpoints, read_state, read_tensors
from hildanext.train.distributed import Ranks


def writer(text: str = "weights") -> Callable[[Path], None]:
    return lambda folder: (folder.mkdir(parents=True), (folder / "model").write_text(text))[0]


def save(checkpoints: Checkpoints, step: int, nll: float | None = None) -> Path:
    return checkpoints.save(step, {"step": step, "eval_nll": nll}, writer(str(step)), Ranks())


def names(checkpoints: Checkpoints) -> list[str]:
    return [path.name for path in checkpoints.all()]


def test_the_last_two_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, last=2, best_count=1)
    for step, nll in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 4.0)):
        save(checkpoints, step, nll)
    assert names(checkpoints) == ["step-000002", "step-000004", "step-000005"]
    assert checkpoints.best(2) == [tmp_path / "step-000002", tmp_path / "step-000005"]


def test_a_million_steps_are_more_than_a_tenth_of_it_and_a_copy_is_nobodys(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", last=2, best_count=1)
    shutil.copytree(save(checkpoints, 999_998, 2.0), checkpoints.folder / "step-999998.mine")
    for step, nll in ((999_999, 2.0), (1_000_000, 2.0), (1_000_001, 3.0)):
        newest = save(checkpoints, step, nll)
    assert names(checkpoints) == ["step-999998", "step-1000000", "step-1000001"] and checkpoints.newest() == newest
    assert [path.name for path in checkpoints.best(3)] == ["step-999998", "step-1000000", "step-1000001"]
    assert (checkpoints.folder / "step-999998.mine" / "model").is_file()
    (tmp_path / "run" / "status.json").write_text("{}")
    with pytest.raises(ModelError, match="newest checkpoint is .*step-1000001"):
        model_folder(str(tmp_path / "run"))
    (checkpoints.folder / "step-999998" / STATE).write_bytes(b"")
    save(checkpoints, 1_000_002)
    assert names(checkpoints) == ["step-1000000", "step-1000001", "step-1000002"]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free the disk and resume"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free the disk and resume"),
        (OSError(errno.EROFS, "Read-only file system"), "look at the folder and its file system and resume"),
        (OSError(errno.EIO, "Input/output error"), "look at the folder and its file system and resume"),
        (RuntimeError("CUDA error"), "look at the folder and its file system and resume"),
    ],
)
def test_the_advice_after_a_failed_save_fits_the_failure(error: Exception, advice: str, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise error

    for number in (1, 2):
        with pytest.raises(RunError, match="step-000002: the checkpoint cannot be written") as refused:
            Checkpoints(tmp_path).save(2, {"step": 2}, fail, Ranks())
        words = str(refused.value)
        assert (advice in words and "step-000001 is whole" in words) if number == 2 else "no older one" in words
        assert len(words.splitlines()) == 1
        save(Checkpoints(tmp_path), 1)


def test_an_unfinished_checkpoint_is_not_seen_and_cleared_later(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    (tmp_path / ".step-000002.tmp").mkdir()
    (tmp_path / "step-000003").mkdir()
    assert names(checkpoints) == ["step-000001"]
    save(checkpoints, 4)
    assert not (tmp_path / ".step-000002.tmp").exists()


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.save(1, {"step": 1}, writer("new"), Ranks())
    assert (tmp_path / "step-000001" / "model").read_text() == "new"


def test_tensors_of_the_state_come_back_as_they_were_and_the_rest_stays_json(tmp_path: Path) -> None:
    rows = torch.tensor([[3, 1], [2, 9]])
    state: dict[str, Any] = {"step": 2, "buffer": {"rows": [rows], "old": rows.double() / 3}, "place": [1, 2]}
    folder = Checkpoints(tmp_path).save(2, state, writer(), Ranks())
    assert read_state(folder) == {"step": 2, "place": [1, 2]}
    found = read_tensors(folder)["buffer"]
    assert torch.equal(found["rows"][0], rows) and torch.equal(found["old"], rows.double() / 3)
    assert read_tensors(save(Checkpoints(tmp_path), 3)) == {}


def test_a_full_disk_leaves_the_old_checkpoint_whole_and_says_so(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = model_files.save_optimizer, [0]

    def full(optimizer: object, folder: Path) -> None:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(optimizer, folder)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(model_files, "save_optimizer", full)
        with pytest.raises(RunError, match="No space left.*step-000003 is whole"):
            run(tmp_path, shards, objective__type="autoregressive", train__checkpoint_every=3)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]
    run(tmp_path, shards, objective__type="autoregressive", train__checkpoint_every=3, train__resume="latest")
    assert len(losses(tmp_path)) == 8


def test_too_little_room_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3})())
    with pytest.raises(RunError, match="3 bytes free.*step-000001 is whole"):
        save(checkpoints, 2)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"3", b"{}", b"\xff\xfe", b'{"step": "x"}'])
def test_a_folder_that_is_no_checkpoint_is_refused_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    if content is not None:
        (tmp_path / STATE).write_bytes(content)
    with pytest.raises(HildaError, match="no checkpoint") as refused:
        read_state(tmp_path)
    assert len(str(refused.value).splitlines()) == 1


def flip(path: Path) -> None:
    """One bit, in the middle; size and time of change stay."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture(scope="module")
def half(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half")
    run(path, shards, objective__type="autoregressive", train__steps=4, train__checkpoint_every=2, train__keep_last=4)
    shutil.rmtree(path / "checkpoints" / "step-000004")
    return path


@pytest.mark.parametrize(
    "name", ["model.safetensors", "trainer/optimizer.pt", "trainer/state.json", "config.json", "tokenizer.json"]
)
def test_one_flipped_bit_in_a_checkpoint_is_found_at_resume(
    name: str, half: Path, shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(half, tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "step-000002" / name)
    with pytest.raises(HildaError, match=f"{name.rsplit('/')[-1]}|no checkpoint") as refused:
        run(tmp_path / "run", shards, objective__type="autoregressive", train__steps=4, train__resume="latest")
    assert len(str(refused.value).splitlines()) == 1


def test_a_checkpoint_that_lost_a_file_is_refused_and_one_without_fingerprints_resumes(
    half: Path, shards: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"objective__type": "autoregressive", "train__steps": 4, "train__resume": "latest"}
    shutil.copytree(half, tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "step-000002" / STATE
    (state.parent / "optimizer.pt").rename(tmp_path / "optimizer.pt")
    with pytest.raises(HildaError, match="damaged: trainer/optimizer.pt is missing"):
        run(tmp_path / "run", shards, **changes)
    (tmp_path / "optimizer.pt").rename(state.parent / "optimizer.pt")
    old = {name: value for name, value in json.loads(state.read_text()).items() if name not in ("files", "sha256")}
    del old["loader"]["rows_hash"]
    state.write_text(json.dumps(old))
    assert run(tmp_path / "run", shards, **changes)["steps"] == 4


@pytest.mark.parametrize("split", ["train", "eval"])
def test_overwritten_tokens_are_found_before_a_step(split: str, half: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(half, tmp_path / "run")
    shutil.copytree(shards, tmp_path / "shards")
    changes: dict[str, Any] = {"objective__type": "autoregressive", "train__steps": 4}
    flip(tmp_path / "shards" / split / "tokens.bin")
    for resume in ("latest", ""):
        with pytest.raises(HildaError, match=f"{split}: damaged: tokens.bin is not what was written"):
            run(tmp_path / ("run" if resume else "new"), tmp_path / "shards", **changes, train__resume=resume)


def test_shards_made_anew_with_other_rows_are_not_gone_on_with(half: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(half, tmp_path / "run")
    shutil.copytree(shards, tmp_path / "shards")
    folder = tmp_path / "shards" / "train"
    flip(folder / "tokens.bin")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": fingerprints(folder, ("manifest.json",))}))
    with pytest.raises(HildaError, match="of other data"):
        run(
            tmp_path / "run", tmp_path / "shards", objective__type="autoregressive", train__steps=4,
            train__resume="latest",
        )  # fmt: skip


def test_what_killed_saves_left_is_gone_at_the_next_start(half: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(half, tmp_path / "run")
    for left in ("checkpoints/.step-000003.tmp", "checkpoints/.step-000001.old", ".hildanext-writing/model"):
        (tmp_path / "run" / left).mkdir(parents=True)
        (tmp_path / "run" / left / "model.safetensors").write_bytes(b"half")
    with pytest.raises(HildaError, match="ladder differs"):
        run(tmp_path / "run", shards, objective__type="autoregressive", train__steps=5, train__resume="latest")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    assert not (tmp_path / "run" / ".hildanext-writing").exists()


def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"objective__type": "autoregressive", "train__steps": 400, "train__checkpoint_every": 2}
    sets = [part for text in overrides(shards, **changes) for part in ("--set", text)]
    command = [
        sys.executable,
        "-m",
        "hildanext",
        "convert-wsd",
        "--quiet",
        "--run-dir",
        str(tmp_path / "killed"),
        *sets,
    ]
    process = subprocess.Popen(command)
    checkpoints = Checkpoints(tmp_path / "killed" / "checkpoints")
    until(lambda: checkpoints.newest() is not None or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    step = int(read_state(checkpoints.all()[-1])["step"])
    stop_after(monkeypatch, step + 2, signal.SIGTERM)
    whole = _stopped(tmp_path / "whole", shards, changes)
    resumed = _stopped(tmp_path / "killed", shards, {**changes, "train__resume": "latest"})
    assert len(resumed) == step + 3
    assert resumed == whole


def _stopped(path: Path, shards: Path, changes: dict[str, Any]) -> list[float]:
    with pytest.raises(Interrupted):
        run(path, shards, **changes)
    return losses(path)
