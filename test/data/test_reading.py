# Reading rows: every kind of damage is one BadRow with its file and line, and the rest of the file is read.
# Entry points: pytest.
# Damaged files are made here byte by byte.
"""Tests of data/reading.py and data/hub.py."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from hildanext.data.document import BadRow
from hildanext.data.hub import named_rows
from hildanext.data.reading import files_below, lines, rows
from hildanext.errors import DataError

GOOD = b'{"text": "a"}\n'


def reasons(path: Path, limit: int = 1 << 20) -> list[tuple[int, str]]:
    return [(number, row.reason if isinstance(row, BadRow) else row["text"]) for number, row in rows(path, limit)]


def test_invalid_utf8_and_invalid_json_are_named_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b'{"text": "\xff"}\n\n{"text": \n[1]\n' + GOOD)
    found = reasons(path)
    assert found == [(1, "a"), (2, "invalid UTF-8"), (4, "invalid JSON"), (5, "not a JSON object"), (6, "a")]
    bad = [row for _, row in rows(path) if isinstance(row, BadRow)]
    assert {row.file for row in bad} == {str(path)} and [row.line for row in bad] == [2, 4, 5]


def test_a_truncated_archive_gives_its_readable_rows_and_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    rows_in = b"".join(json.dumps({"text": f"{i:032x}" * 40}).encode() + b"\n" for i in range(200))
    whole = gzip.compress(rows_in, mtime=0)
    path.write_bytes(whole[: len(whole) // 2])
    *good, (line, reason) = reasons(path)
    assert "archive" in reason and line == len(good) + 1
    assert [text for _, text in good] == [f"{i:032x}" * 40 for i in range(len(good))]


def test_bytes_that_are_no_archive_are_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(b"plain text\n")
    assert [reason for _, reason in reasons(path)] == ["truncated or damaged archive (BadGzipFile)"]


def test_a_long_line_is_skipped_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'{"text": "')
        for _ in range(50):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + GOOD)
    tracemalloc.start()
    found = reasons(path, 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(1, "a"), (2, "line over 1 MiB"), (3, "a")]
    assert peak < 8 << 20


def test_zstandard_shards_are_read_and_truncated_ones_reported(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(GOOD * 3)
    whole, cut = tmp_path / "a.jsonl.zst", tmp_path / "b.jsonl.zst"
    whole.write_bytes(packed)
    cut.write_bytes(b"\0" * 12)
    assert reasons(whole) == [(1, "a"), (2, "a"), (3, "a")]
    assert "archive" in reasons(cut)[0][1]


def test_a_json_array_is_read_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n[{"text": "a"}, 3,\n {"text": "b"}]')
    assert reasons(path) == [(1, "a"), (2, "not a JSON object"), (3, "b")]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize("key", ["prompt", "input", "data"])
def test_one_row_whose_question_is_a_chat_is_one_row_and_a_list_of_chats_is_rows(
    key: str, kind: str, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    file = tmp_path / f"one.{kind}"
    file.write_text(json.dumps({key: turns} if key != "data" else {key: [{"messages": turns}]}))
    assert [row for _, row in rows(file)] == [{key: turns} if key != "data" else {"messages": turns}]


def test_a_packed_json_array_is_read_as_rows_and_packed_lines_stay_lines(tmp_path: Path) -> None:
    array, plain = tmp_path / "a.json.gz", tmp_path / "b.json.gz"
    array.write_bytes(gzip.compress(b'[{"text": "a"}, {"text": "b"}]'))
    plain.write_bytes(gzip.compress(GOOD * 2))
    assert reasons(array) == [(1, "a"), (2, "b")] and reasons(plain) == [(1, "a"), (2, "a")]


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_with_a_header_is_read_as_rows_of_text(packed: bool, tmp_path: Path) -> None:
    content = b'id,text\r\n1,"a, ""b""\nc"\r\n2\r\n3,d\r\n'
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    found = [(number, row if isinstance(row, BadRow) else dict(row)) for number, row in rows(path)]
    bad = BadRow("cells do not fit the header", str(path), 4)
    assert found == [(3, {"id": "1", "text": 'a, "b"\nc'}), (4, bad), (5, {"id": "3", "text": "d"})]


def test_a_damaged_table_gives_its_readable_rows_and_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,a\n" + b"2,b\n" * 4000 + b"3,\xff\n")
    *good, (_, bad) = list(rows(path))
    assert good[0] == (2, {"id": "1", "text": "a"})
    assert isinstance(bad, BadRow) and "not valid CSV" in bad.reason


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\na\r\n\nb")
    assert list(lines(path)) == [(3, b"a"), (5, b"b")]


def test_a_folder_without_files_of_the_kind_is_an_error_that_names_the_endings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.jsonl"):
        files_below(tmp_path, (".jsonl",))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What the library is asked for: (data set, subset, split)."""
    datasets, seen = pytest.importorskip("datasets"), list[tuple[object, ...]]()

    def load(dataset: str, name: str | None, split: str, **more: object) -> list[dict[str, str]]:
        seen.append((dataset, name, split))
        return [{"text": "hub"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    return seen


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("hub:a/b:train", ("a/b", None, "train")),
        ("hub:a/b/main:test", ("a/b", "main", "test")),
        ("hub:a/b", ("a/b", None, "test")),
        ("hub:b:test", ("b", None, "test")),
    ],
)
def test_a_name_on_the_hub_is_opened_only_where_the_network_was_asked_for(
    name: str, wanted: tuple[object, ...], asked: list[tuple[object, ...]]
) -> None:
    with pytest.raises(DataError, match="download=true"):
        named_rows(name)
    assert asked == []
    assert list(named_rows(name, download=True)) == [(1, {"text": "hub"})] and asked == [wanted]


def test_a_file_that_does_not_exist_is_not_looked_for_on_the_hub(asked: list[tuple[object, ...]]) -> None:
    with pytest.raises(DataError, match="no such file"):
        named_rows("a/b.jsonl", download=True)
    assert asked == []
