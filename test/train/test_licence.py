# What is made of a licensed parent carries its licence: checkpoints, the child, a merge, every export, adapters too.
# Entry points: pytest.
# The parent's other files stay behind.
"""Tests of models/licence.py through every writer of model folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from train.material import QUIET, configuration, run

from hildanext.cli import main
from hildanext.train.merge import Choice, merge_run

NAMES = {"LICENSE", "NOTICE.txt"}


@pytest.fixture(scope="module")
def licensed(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("licensed") / "parent"
    shutil.copytree(parent, folder)
    for name in (*NAMES, "notes.md"):
        (folder / name).write_text(f"{name} of the parent\n")
    return folder


def carried(folder: Path) -> set[str]:
    found = {path.name for path in folder.iterdir() if path.name in (*NAMES, "notes.md")}
    assert all((folder / name).read_text() == f"{name} of the parent\n" for name in found)
    return found


def test_checkpoints_child_merge_and_export_carry_the_parents_licence(
    licensed: Path, shards: Path, tmp_path: Path
) -> None:
    changes = {"model__path": str(licensed), "train__steps": 4, "train__checkpoint_every": 2, "train__eval_every": 2}
    changes["ladder"] = {"fixed": 4}
    run(tmp_path / "run", shards, **changes)
    steps = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert [carried(path) for path in (*steps, tmp_path / "run" / "model")] == [NAMES] * 3
    members = [path.name for path in steps]
    merge_run(configuration(shards, **changes), QUIET, tmp_path / "run", Choice(members), tmp_path / "merged")
    assert carried(tmp_path / "merged") == NAMES
    assert main(["export", "--quiet", "--model", str(tmp_path / "merged"), "--output", str(tmp_path / "out")]) == 0
    assert carried(tmp_path / "out") == NAMES


def test_a_child_of_adapters_carries_it(licensed: Path, shards: Path, tmp_path: Path) -> None:
    run(tmp_path, shards, model__path=str(licensed), model__adapter__kind="lora", train__steps=2, ladder={"fixed": 4})
    assert carried(tmp_path / "model") == NAMES
