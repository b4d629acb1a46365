# States written beforehand: equal to those of the parent beside the student, gone on with, and refused where others.
# Entry points: pytest.
# The live parent is the oracle of the cache; a killed writer is a file that breaks off.
"""Tests of train/anchors.py and data/row_store.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from train.material import QUIET, configuration, losses, make_shards, run

from hildanext.data.row_store import ENTRY, RowStore
from hildanext.errors import ConfigError, DataError
from hildanext.train import anchors
from hildanext.train.anchors import write_anchors

ALIGNED: dict[str, Any] = {"type": "align", "over": {"type": "mask_and_edit", "noise": {"replace": 0.0}}, "weight": 3.0}
SHORT: dict[str, Any] = {"train__steps": 4, "ladder__fixed": 4, "train__parity": False}


def written(shards: Path, parent: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    given = {"model__path": str(parent), "anchors__folder": str(folder), "anchors__dtype": "float32", **changes}
    return write_anchors(configuration(shards, **given), QUIET)


@pytest.fixture(scope="module")
def cache(shards: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("anchors")
    written(shards, parent, folder)
    return folder


def trained(path: Path, shards: Path, parent: Path, **fields: Any) -> list[float]:
    run(path, shards, model__path=str(parent), objective={**ALIGNED, **fields}, **SHORT)
    return losses(path)


def assert_cache_is_live(shards: Path, parent: Path, cache: Path, place: Path) -> None:
    live = trained(place / "live", shards, parent, positions="all")
    cached = trained(place / "cached", shards, parent, positions="all", anchors=str(cache))
    assert cached == pytest.approx(live, abs=1e-6)


def test_the_cache_equals_the_parent_beside_the_student(
    shards: Path, parent: Path, cache: Path, tmp_path: Path
) -> None:
    assert_cache_is_live(shards, parent, cache, tmp_path)
    plain = trained(tmp_path / "plain", shards, parent, weight=0.0)
    assert max(abs(a - b) for a, b in zip(plain, losses(tmp_path / "live"), strict=True)) > 1e-3


def test_a_cache_whose_rows_are_mixed_up_is_seen(
    shards: Path, parent: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = RowStore.read
    monkeypatch.setattr(RowStore, "read", lambda self, key, part=(): read(self, key, part).flip(0))
    with pytest.raises(AssertionError):
        assert_cache_is_live(shards, parent, cache, tmp_path)


def test_a_killed_writer_is_gone_on_with_and_nothing_is_written_twice(
    shards: Path, parent: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flush, done = tmp_path / "anchors", RowStore.flush, list[int]()

    def killed(self: RowStore) -> None:
        flush(self)
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RowStore, "flush", killed)
        written(shards, parent, folder, anchors__at_once=2)
    with (folder / "data.bin").open("ab") as file:
        file.write(b"half a row")
    with (folder / "index.bin").open("ab") as file:
        file.write(b"half an entry")
    report = written(shards, parent, folder, anchors__at_once=2)
    assert 0 < report["written"] < report["rows"]
    assert (folder / "data.bin").read_bytes() == (cache / "data.bin").read_bytes()
    assert (folder / "index.bin").stat().st_size == report["rows"] * ENTRY.itemsize
    assert written(shards, parent, folder)["written"] == 0


def test_rounded_states_and_chosen_layers_are_near_the_whole(
    shards: Path, parent: Path, cache: Path, tmp_path: Path
) -> None:
    report = written(shards, parent, tmp_path, anchors__dtype="bfloat16", anchors__layers=[2])
    exact, rounded = RowStore.open(cache, "anchors"), RowStore.open(tmp_path, "anchors")
    key = next(iter(exact.places))
    torch.testing.assert_close(rounded.read(key)[:, 0], exact.read(key)[:, 1], atol=0.0, rtol=2**-8)
    assert torch.equal(exact.read(key, [1])[:, 0], exact.read(key)[:, 1])
    assert report["bytes"] * 4 == (cache / "data.bin").stat().st_size
    with pytest.raises(ConfigError, match=r"objective\.layers: \[1\]; .* has \[2\]"):
        trained(tmp_path / "run", shards, parent, anchors=str(tmp_path), layers=[1])


def test_others_states_are_refused_with_the_reason(
    shards: Path, parent: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    run(other, shards, objective__type="autoregressive", train__steps=1, seed=5)
    with pytest.raises(DataError, match="those of another model"):
        trained(tmp_path / "a", shards, other / "model", anchors=str(cache))
    with pytest.raises(DataError, match=r"written of other things \(weights"):
        written(shards, other / "model", cache)
    with pytest.raises(DataError, match=r"nothing was written of row \d+; the shards are others"):
        trained(tmp_path / "b", make_shards(tmp_path / "more", 40), parent, anchors=str(cache))
    with pytest.raises(DataError, match="run `hildanext anchors` first"):
        trained(tmp_path / "c", shards, parent, anchors=str(tmp_path))
    moved = tmp_path / "moved"
    shutil.copytree(cache, moved)
    (moved / "rows.json").write_text((cache / "rows.json").read_text().replace('hash": "', 'hash": "x'))
    with pytest.raises(DataError, match="made with tokenizer x"):
        trained(tmp_path / "d", shards, parent, anchors=str(moved))
    monkeypatch.setattr(anchors.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DataError, match="are needed and 0.0 are free"):
        written(shards, parent, tmp_path / "full")
