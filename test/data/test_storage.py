# Data in a storage that fsspec reaches: the same rows as on this machine, a cache with digests, errors on one line.
# Entry points: pytest.
# file:// is a storage as well as any other; test_cluster.py has the same against a real S3 endpoint.
"""Tests of data/storage.py and what reads and writes through it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data.material import QUIET
from data.storage_material import made, raw_files, rows_in

from hildanext.config.places import with_values
from hildanext.data import storage
from hildanext.data.loader import Loader
from hildanext.data.shards import ShardSet
from hildanext.data.tokenize import tokenize
from hildanext.errors import DataError, RunError
from hildanext.train.training import open_shards


def test_rows_through_a_storage_are_the_rows_of_this_machine_byte_for_byte(tmp_path: Path, cache: Path) -> None:
    raw = raw_files(tmp_path / "raw")
    _, prepared, tokenized = made(tmp_path / "here", raw)
    config, prepared_there, tokenized_there = made(f"file://{tmp_path}/there", f"file://{raw}")
    assert rows_in(tmp_path / "here") == rows_in(tmp_path / "there") and len(rows_in(tmp_path / "here")) > 12
    assert prepared["files"] == prepared_there["files"] and prepared["documents"] == prepared_there["documents"]
    assert prepared["documents"]["dropped"] == {"bad row: field 'text' is no text": 4, "duplicate": 3}
    assert {n: s["files"] for n, s in tokenized["splits"].items()} == {
        n: s["files"] for n, s in tokenized_there["splits"].items()
    }
    assert prepared_there["bad_rows"][0][0] == f"file://{raw}/a.jsonl"
    here, there = (
        open_shards(with_values(config, {"paths.data": str(tmp_path / "here")}), "train"),
        open_shards(config, "train"),
    )
    assert there.folder.is_relative_to(cache)
    ours, theirs = iter(Loader(here, 3, 5)), iter(Loader(there, 3, 5))
    assert all(next(ours).tokens.equal(next(theirs).tokens) for _ in range(5))
    assert not list(tmp_path.glob("*/processed/.*parts*")) and not list((cache / "building").rglob("*.jsonl"))


def test_a_storage_whose_file_is_not_what_was_published_is_refused(tmp_path: Path, cache: Path) -> None:
    config, _, _ = made(f"file://{tmp_path}/there", raw_files(tmp_path / "raw"))
    tokens = tmp_path / "there/tokenized/set/train/tokens.bin"
    tokens.write_bytes(bytes([tokens.read_bytes()[0] ^ 1]) + tokens.read_bytes()[1:])
    with pytest.raises(DataError, match="train/tokens.bin is not what was written.*write it again"):
        open_shards(config, "train")


def test_a_cached_file_that_was_damaged_is_fetched_again(tmp_path: Path, cache: Path) -> None:
    config, _, _ = made(f"file://{tmp_path}/there", raw_files(tmp_path / "raw"))
    tokens = open_shards(config, "train").folder / "tokens.bin"
    whole = tokens.read_bytes()
    for damage in (whole[:-2], bytes([whole[0] ^ 1]) + whole[1:]):
        storage._kept.cache_clear()
        tokens.unlink()
        tokens.write_bytes(damage)
        open_shards(config, "train").require_whole()
        assert tokens.read_bytes() == whole


def test_a_folder_that_is_being_written_again_is_never_taken_for_whole(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _, _ = made(f"file://{tmp_path}/there", raw_files(tmp_path / "raw"))
    storage._kept.cache_clear()
    put = storage.put

    def breaks(file: Path, place: Path | str) -> None:
        if str(place).endswith("train/rows.bin"):
            raise OSError("the line is cut")
        put(file, place)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "put", breaks)
        with pytest.raises(OSError, match="the line is cut"):
            tokenize(config, QUIET)
    with pytest.raises(DataError, match=r"\.hildanext-objects\.json: is not there"):
        open_shards(config, "train")


@pytest.mark.parametrize(
    ("place", "told"),
    [("file:///no/such/place", "no such file or folder, or none of .jsonl"), ("nosuch://bucket/rows", "nosuch")],
)
def test_a_place_that_cannot_be_read_is_told_on_one_line(
    place: str, told: str, tmp_path: Path, cache: Path
) -> None:  # fmt: skip
    with pytest.raises(DataError, match=told) as caught:
        made(tmp_path / "out", place)
    assert place in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_place_that_cannot_be_written_is_told_before_anything_is_prepared(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match="nosuch://bucket/data/processed/set: .*nosuch"):
        made("nosuch://bucket/data", raw_files(tmp_path / "raw"))
    assert not list(cache.rglob("*.jsonl"))


def test_the_executors_of_a_cluster_without_their_extra_say_what_to_install(tmp_path: Path) -> None:
    from hildanext.data.executor import require_datatrove

    with pytest.raises(RunError, match=r"needs .*no_such_package; pip install 'hildanext\[cluster\]'"):
        require_datatrove("no_such_package")


def test_only_a_scheme_at_the_start_makes_a_place_remote() -> None:
    remote = {
        "s3://b/x": True,
        "file:///x": True,
        "data/x://y": False,
        "C:/x": False,
        "data/::s3://b": False,
        "": False,
    }
    assert {place: storage.is_remote(place) for place in remote} == remote


def test_shards_of_a_storage_bring_their_tokenizer(tmp_path: Path, cache: Path) -> None:
    config, _, manifest = made(f"file://{tmp_path}/there", raw_files(tmp_path / "raw"))
    shards = ShardSet.open(open_shards(config, "train").folder)
    assert json.loads((Path(shards.tokenizer) / "tokenizer.json").read_text())
    assert manifest["tokenizer"] == f"file://{tmp_path}/there/tokenized/set/tokenizer"
