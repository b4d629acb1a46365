# prepare-data: counts reconcile, sides depend on the document alone, an interrupted run changes nothing.
# Entry points: pytest.
# Splits and duplicates are recomputed here from the written rows.
"""Tests of data/prepare.py, units.py, splitting.py, cleaning.py."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data.material import QUIET, configuration, read_rows, write_rows
from waiting import PATIENCE, until

from hildanext.cli import main
from hildanext.data import units
from hildanext.data.prepare import prepare
from hildanext.data.splitting import mixture_thresholds
from hildanext.data.tokenize import tokenize
from hildanext.disk import RECORD, replacing
from hildanext.errors import ConfigError, DataError, HildaError

FILES = ("train", "eval", "sft_train", "sft_eval")


def source(path: Path, **more: Any) -> dict[str, Any]:
    return {"type": "jsonl", "path": str(path), **more}


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "processed" / "set").iterdir())}


def sides(root: Path) -> dict[str, str]:
    found = {}
    for name in FILES:
        for row in read_rows(root / "processed" / "set" / f"{name}.jsonl"):
            found[row.get("text") or json.dumps(row["messages"])] = name
    return found


def test_counts_reconcile_and_every_drop_has_its_reason(tmp_path: Path) -> None:
    texts = ["short", "a good text", "a good text", "  a good text\n", "long " * 20, "a secret text", "no language"]
    rows = [{"text": text} for text in texts] + [{"other": 1}, {"text": ""}, {"text": "ein Text", "language": "de"}]
    rules = {"min_chars": 6, "max_chars": 60, "forbid": ["secret"], "languages": ["en"]}
    config = configuration(tmp_path, [source(write_rows(tmp_path / "a.jsonl", rows))], cleaning=rules)
    manifest = prepare(config, QUIET)
    documents = manifest["documents"]
    assert documents["dropped"] == {
        "bad row: empty": 1, "bad row: missing field 'text'": 1, "duplicate": 2, "forbidden pattern": 1,
        "language": 1, "too long": 1, "too short": 1,
    }  # fmt: skip
    assert documents["read"] == len(rows) == documents["kept"] + sum(documents["dropped"].values())
    assert set(sides(tmp_path)) == {"a good text", "no language"}
    assert [row[1] for row in manifest["bad_rows"]] == [8, 9]


def test_the_manifest_describes_the_files_it_lies_beside(tmp_path: Path) -> None:
    world = {"type": "storyworld", "stories": 40, "chat": 10, "arithmetic": 5, "coding": 5}
    manifest = prepare(configuration(tmp_path, [world], eval_share=0.3), QUIET)
    folder = tmp_path / "processed" / "set"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{name}.jsonl" for name in FILES), "manifest.json", ".hildanext"]
    )
    for name in FILES:
        data, facts = (folder / f"{name}.jsonl").read_bytes(), manifest["files"][name]
        assert facts == {
            "documents": data.count(b"\n"), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()
        }  # fmt: skip
    assert json.loads((folder / "manifest.json").read_text()) == manifest


def test_one_and_two_workers_write_the_same_bytes(tmp_path: Path) -> None:
    for name in "abc":
        write_rows(tmp_path / "in" / f"{name}.jsonl", [{"text": f"{name} {i % 30}"} for i in range(40)])
    results = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        prepare(configuration(root, [source(tmp_path / "in")], workers=workers, eval_share=0.3), QUIET)
        results.append(content(root))
    assert results[0] == results[1]


def test_a_document_keeps_its_side_whatever_stands_around_it(tmp_path: Path) -> None:
    rows = [{"text": f"document {i}"} for i in range(300)]
    one = write_rows(tmp_path / "one.jsonl", rows)
    other = write_rows(tmp_path / "other.jsonl", [{"text": "new"}, *reversed(rows[:200])])
    for name, path in (("1", one), ("2", other)):
        prepare(configuration(tmp_path / name, [source(path)], eval_share=0.2), QUIET)
    first, second = sides(tmp_path / "1"), sides(tmp_path / "2")
    assert all(first[text] == side for text, side in second.items() if text != "new")
    held_out = sum(side == "eval" for side in first.values())
    assert 30 <= held_out <= 90


def test_the_first_of_equal_documents_stays_across_sources(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / f"{i}.jsonl", [{"id": f"{i}", "text": "same"}]) for i in range(2)]
    manifest = prepare(configuration(tmp_path, [source(path) for path in paths], eval_share=0), QUIET)
    assert [row["id"] for row in read_rows(tmp_path / "processed" / "set" / "train.jsonl")] == ["0"]
    assert [entry["kept"] for entry in manifest["sources"]] == [1, 0]
    kept = prepare(configuration(tmp_path, [source(path) for path in paths], cleaning={"deduplicate": False}), QUIET)
    assert kept["documents"]["kept"] == 2


def test_weights_set_the_ratio_of_characters_and_keep_as_much_as_they_can(tmp_path: Path) -> None:
    assert mixture_thresholds([100, 50, 70], [1.0, 1.0, None]) == [0.5, 1.0, 1.0]
    assert mixture_thresholds([100, 0], [1.0, 3.0]) == [1.0, 1.0]
    paths = [write_rows(tmp_path / f"{i}.jsonl", [{"text": f"{i} {j:05d}"} for j in range(1000)]) for i in range(2)]
    weighted = [source(path, weight=weight) for path, weight in zip(paths, (1.0, 4.0), strict=True)]
    manifest = prepare(configuration(tmp_path, weighted), QUIET)
    few, many = (entry["kept"] for entry in manifest["sources"])
    assert many == 1000 and 180 <= few <= 320
    assert manifest["documents"]["dropped"] == {"mixture weight": 1000 - few}


def test_too_many_bad_rows_stop_the_command_and_leave_the_previous_output(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "good.jsonl", [{"text": "a"}])
    prepare(configuration(tmp_path, [source(good)]), QUIET)
    before = content(tmp_path)
    bad = write_rows(tmp_path / "bad.jsonl", [{"text": "a"}, *[{"text": ""}] * 5])
    with pytest.raises(DataError, match=r"at most 3 are skipped \(.*bad\.jsonl:2 empty"):
        prepare(configuration(tmp_path, [source(bad)], max_bad_rows=3), QUIET)
    assert content(tmp_path) == before
    prepare(configuration(tmp_path, [source(bad)], max_bad_rows=5), QUIET)


def test_an_interrupted_run_leaves_the_output_and_its_finished_parts_serve_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write_rows(tmp_path / "in" / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(5)])
    config = configuration(tmp_path, [source(tmp_path / "in")])
    prepare(configuration(tmp_path, [source(tmp_path / "in" / "a.jsonl")]), QUIET)
    before, read = content(tmp_path), []
    plugin = type(units_of(config)[0])
    honest = plugin.read

    def interrupted(self: Any, unit: Any) -> Any:
        read.append(Path(unit.name).name)
        if read == ["a.jsonl", "b.jsonl"]:
            raise KeyboardInterrupt
        return honest(self, unit)

    monkeypatch.setattr(plugin, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, QUIET)
    assert content(tmp_path) == before
    manifest = prepare(config, QUIET)
    assert read == ["a.jsonl", "b.jsonl", "b.jsonl", "c.jsonl"]
    assert manifest["documents"]["kept"] == 15
    assert [path.name for path in (tmp_path / "processed").iterdir()] == ["set"]


def units_of(config: Any) -> list[Any]:
    from hildanext.registry import build

    return [build("sources", section) for section in config.data.sources]


def test_a_second_process_on_the_same_output_is_refused_before_it_reads_or_writes_anything(tmp_path: Path) -> None:
    config = configuration(tmp_path, [source(write_rows(tmp_path / "a.jsonl", [{"text": "a good text"}]))])
    processed, tokenized = tmp_path / "processed" / "set", tmp_path / "tokenized" / "set"
    with replacing(processed, "data set"):
        with pytest.raises(HildaError, match=f"{processed}: another process is writing it; wait for it or name"):
            prepare(config, QUIET)
        assert [path.name for path in processed.parent.iterdir()] == [".hildanext-writing"]
    prepare(config, QUIET)
    with replacing(tokenized, "shards"), pytest.raises(HildaError, match=f"{tokenized}: another process is writing it"):
        tokenize(config, QUIET)
    assert list(processed.parent.iterdir()) == [processed] and list(tokenized.iterdir()) == [tokenized / RECORD]


def test_a_source_without_data_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="source dolma"):
        prepare(configuration(tmp_path / "out", [{"type": "dolma", "path": str(tmp_path / "none")}]), QUIET)
    assert not (tmp_path / "out").exists()


def test_texts_are_normalised_and_a_bad_pattern_is_a_configuration_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": " e\u0301\r\nb "}, {"prompt": "e\u0301", "response": "\ufb01"}])
    path2 = write_rows(tmp_path / "b.jsonl", [{"prompt": "e\u0301", "response": "\ufb01"}])
    config = configuration(tmp_path, [source(path), source(path2)], eval_share=0, cleaning={"normalization": "NFKC"})
    prepare(config, QUIET)
    assert list(sides(tmp_path)) == [
        "\u00e9\nb", json.dumps([{"role": "user", "content": "\u00e9"}, {"role": "assistant", "content": "fi"}])
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.cleaning\.forbid"):
        prepare(configuration(tmp_path, [source(path)], cleaning={"forbid": ["("]}), QUIET)


def test_many_buckets_find_the_same_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"t{i * i % 101}"} for i in range(500)])
    whole = prepare(configuration(tmp_path / "1", [source(path)]), QUIET)
    monkeypatch.setattr("hildanext.data.splitting.BUCKET_DOCUMENTS", 7)
    assert prepare(configuration(tmp_path / "2", [source(path)]), QUIET)["files"] == whole["files"]
    assert whole["documents"]["kept"] == len({i * i % 101 for i in range(500)})
    assert units.TABLE.itemsize == 37


def members(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def busy_command(place: Path) -> subprocess.Popen[bytes]:
    """prepare-data whose workers match a pattern that takes for ever."""
    place.mkdir()
    sources = [source(write_rows(place / f"{name}.jsonl", [{"text": "a" * 60 + "b"}])) for name in "xyz"]
    config = configuration(place, sources, workers=2, cleaning={"forbid": ["^(a+)+$"]})
    (place / "config.json").write_text(config.model_dump_json())
    words = [sys.executable, "-m", "hildanext", "prepare-data", "--quiet", "--config", str(place / "config.json")]
    return subprocess.Popen(words, start_new_session=True)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_an_ended_command_leaves_no_worker_even_in_an_endless_computation(tmp_path: Path) -> None:
    codes = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 130}
    children = {number: busy_command(tmp_path / number.name) for number in codes}
    try:
        for number, child in children.items():
            parts = tmp_path / number.name / "processed"
            until(lambda parts=parts: len(list(parts.glob(".set.parts-*/*.table"))) >= 2)
            child.send_signal(number)
        assert {number: child.wait(PATIENCE) for number, child in children.items()} == codes
        until(lambda: not any(members(child.pid) for child in children.values()))
    finally:
        for pid in [pid for child in children.values() for pid in members(child.pid)]:
            os.kill(pid, signal.SIGKILL)


def test_several_data_flags_are_sources_mixed_by_their_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [json.dumps({"text": f"{name} {number} " + "word " * 20}) for number in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    flags = ["--data", f"{tmp_path / 'a.jsonl'}=3", "--data", f"{tmp_path / 'b.jsonl'}=1", "--name", "mixed"]
    assert main(["prepare-data", *flags, "--set", f"paths.data={tmp_path}", "--set", "data.workers=1"]) == 0
    texts = [json.loads(line)["text"] for line in (tmp_path / "processed" / "mixed" / "train.jsonl").open()]
    counts = Counter(text[0] for text in texts)
    assert 170 < counts["a"] <= 200 and 0.2 < counts["b"] / counts["a"] < 0.5


@pytest.mark.parametrize("wrong", ["a.jsonl=x", "a.jsonl=0", "a.jsonl=-1", "a.jsonl=inf"])
def test_a_weight_that_is_none_is_one_line(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare-data", "--data", wrong])
    assert "weight" in capsys.readouterr().err
