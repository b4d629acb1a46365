# What people really have in their files: flags that say "do not learn", tools, odd shapes, archives that break off.
# Entry points: pytest.
# Each input is one that once went wrong: it was learned, lost in silence, or ended in a traceback.
"""Hostile and unusual rows and files through data/records.py, messages.py, reading.py and tables.py."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from data.material import QUIET, configuration, read_rows, write_rows

from hildanext.data.document import BadRow, as_json, from_json
from hildanext.data.messages import Unusable
from hildanext.data.prepare import prepare
from hildanext.data.reading import files_below, rows
from hildanext.data.records import detect, to_document
from hildanext.errors import DataError
from hildanext.registry import build

ASK, TOLD = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
SYSTEM = {"role": "system", "content": "Be short"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
LATER = {"role": "user", "content": "And?"}
SHAPES: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"messages": [{"role": "User", "content": "Hi"}, {"role": "ASSISTANT", "content": "Yes"}]}, [ASK, TOLD]),
    ({"messages": [{"role": "developer", "content": "Be short"}, ASK, TOLD]}, [SYSTEM, ASK, TOLD]),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, TOLD]},
     [ASK, TOLD]),
    ({"conversations": [ASK, TOLD]}, [ASK, TOLD]),
    ({"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]}, [ASK, TOLD]),
    ({"messages": json.dumps([ASK, TOLD])}, [ASK, TOLD]),
    ({"messages": {"role": ["user", "assistant"], "content": ["Hi", "Yes"]}}, [ASK, TOLD]),
    ({"prompt": [SYSTEM, ASK], "completion": [TOLD]}, [SYSTEM, ASK, TOLD]),
    ({"prompt": [ASK, TOLD, LATER], "completion": [TOLD]}, [ASK, {**TOLD, "learn": False}, LATER, TOLD]),
    ({"prompt": [ASK], "completion": "Yes"}, [ASK, TOLD]),
    ({"query": "Hi", "response": "Yes"}, [ASK, TOLD]),
    ({"problem": "Hi", "solution": "Yes", "answer": "Y"}, [ASK, TOLD]),
    ({"input": "Hi", "output": "Yes"}, [ASK, TOLD]),
    ({"instruction": "Hi", "context": "", "response": "Yes"}, [ASK, TOLD]),
    ({"system_prompt": "Be short", "question": "Hi", "response": "Yes"}, [SYSTEM, ASK, TOLD]),
    ({"instruction": "And?", "output": "Yes", "history": [["Hi", "Yes"]]}, [ASK, TOLD, LATER, TOLD]),
    ({"messages": [ASK, {**TOLD, "weight": 0}, LATER, {**TOLD, "weight": 1}]},
     [ASK, {**TOLD, "learn": False}, LATER, TOLD]),
    ({"messages": [ASK, {**TOLD, "train": False}, LATER, TOLD]}, [ASK, {**TOLD, "learn": False}, LATER, TOLD]),
    ({"messages": [ASK, {**TOLD, "reasoning_content": "Hm"}]}, [ASK, {**TOLD, "reasoning_content": "Hm"}]),
    ({"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "2"}, TOLD]},
     [ASK, {**CALLED, "tool_calls": [{"id": "1", **CALL}]}, {"role": "tool", "content": "2", "tool_call_id": "1"},
      TOLD]),
    ({"conversations": [{"from": "human", "value": "Hi"},
                        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
                        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "Yes"}]},
     [ASK, CALLED, {"role": "tool", "content": "2"}, TOLD]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages"), SHAPES)
def test_every_shape_of_chat_people_publish_gives_its_messages(
    row: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    document = to_document(row, detect(row) or "", "here", "1")
    assert list(document.messages or ()) == messages and from_json(as_json(document)) == document


def test_tools_come_along_as_a_list_or_as_json_text() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for given in ([tool], json.dumps([tool]), [tool["function"]]):
        document = to_document({"messages": [ASK, TOLD], "tools": given}, "messages", "here", "1")
        assert document.tools == (tool,) and from_json(as_json(document)) == document


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, "preference row"),
    ({"chosen": [ASK, TOLD], "rejected": [ASK, TOLD], "messages": [ASK, TOLD]}, "preference row"),
    ({"prompt": "Hi", "completion": "No", "label": False}, "KTO row"),
    ({"prompt": [ASK], "completion": [TOLD], "label": True}, "KTO row"),
    ({"messages": [ASK, {**TOLD, "weight": 0}]}, "no reply is to be learned"),
    ({"messages": [ASK, {**TOLD, "weight": 0.5}]}, "neither 0 nor 1"),
    ({"messages": [ASK, {"role": "assistant", "content": None}]}, "a message is no text"),
    ({"messages": [ASK, {"role": "assistant", "content": ""}, LATER, TOLD]}, "an empty assistant message"),
    ({"messages": [ASK, {"role": "assistant", "content": "<think>\n</think>\n"}]}, "an empty assistant message"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, TOLD]}, "image_url"),
    ({"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}]}, "without a name"),
    ({"messages": "[{"}, "no JSON"),
    ({"input_ids": [1, 2], "labels": [-100]}, "1 entries for 2 tokens"),
    ({"input_ids": [1, 2], "labels": [2, 3]}, "neither -100 nor the token ids"),
    ({"input_ids": [1, 2], "labels": [-100, -100]}, "no token is to be learned"),
    ({"input_ids": [1, 2**70]}, "beyond 64 bits"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_what_must_not_be_learned_is_refused_by_name(row: dict[str, Any], reason: str) -> None:
    row = {"messages": None, **row}
    with pytest.raises(Unusable, match=reason):
        to_document(row, detect(row) or "", "here", "1")


def test_labels_and_masks_of_tokenised_rows_say_what_is_learned() -> None:
    marks: list[dict[str, Any]] = [
        {"labels": [-100, 6, 7]}, {"completion_mask": [0, 1, 1]}, {"assistant_masks": [False, True, True]}
    ]  # fmt: skip
    for more in marks:
        document = to_document({"input_ids": [5, 6, 7], **more}, "tokens:input_ids", "here", "1")
        assert (document.tokens, document.learn) == ((5, 6, 7), (False, True, True))
        assert from_json(as_json(document)) == document
    padded = {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0], "labels": [5, 6, -100, -100]}
    document = to_document(padded, "tokens:input_ids", "here", "1")
    assert (document.tokens, document.learn) == ((5, 6), None)


def kept(path: Path, **more: Any) -> list[Any]:
    source = build("sources", {"type": "jsonl", "path": str(path), **more})
    found = [row for unit in source.units() for row in source.read(unit)]
    return [row.reason if isinstance(row, BadRow) else row.text for row in found]


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.CSV", "a.csv.gz", "a.parquet", "a.arrow", "a.stream.arrow", "a.json", "b.json",
             "c.json", "d.json.gz", "a.ndjson", "A.JSONL", "e.jsonl", "a.jsonl.xz", "a.jsonl.bz2", "a.jsonl.zst"]
)  # fmt: skip
def test_tables_and_every_kind_of_json_are_read_as_rows(name: str, tmp_path: Path) -> None:
    import bz2
    import lzma

    import pyarrow
    import pyarrow.parquet

    found, path = [{"text": "a"}, {"text": "b"}], tmp_path / name
    lines = "".join(json.dumps(row) + "\n" for row in found).encode()
    table = pyarrow.Table.from_pylist(found)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif path.suffix == ".arrow":
        kind = pyarrow.ipc.new_stream if "stream" in name else pyarrow.ipc.new_file
        with kind(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        content = {
            "a.csv": b"id,text\n1,a\n2,b\n", "a.tsv": b"id\ttext\n1\ta\n2\tb\n", "a.CSV": b"id;text\n1;a\n2;b\n",
            "a.csv.gz": gzip.compress(b"\xef\xbb\xbftext\na\nb\n"), "a.json": json.dumps({"data": found}).encode(),
            "b.json": json.dumps(found, indent=2).encode(), "c.json": b'{\n "text": "a"\n}\n{\n "text": "b"\n}\n',
            "d.json.gz": gzip.compress(json.dumps({"version": 1, "rows": found}, indent=1).encode()),
            "e.jsonl": json.dumps(found, indent=1).encode(), "a.jsonl.xz": lzma.compress(lines),
            "a.jsonl.bz2": bz2.compress(lines), "a.jsonl.zst": pyarrow.compress(lines, "zstd", asbytes=True),
        }.get(name, lines)  # fmt: skip
        path.write_bytes(content)
    assert kept(tmp_path) == ["a", "b"]


def test_one_object_with_a_list_inside_is_one_row_unless_it_holds_rows(tmp_path: Path) -> None:
    item = {"question": "Which?", "choices": [{"text": "a"}, {"text": "b"}]}
    (tmp_path / "one.jsonl").write_text(json.dumps(item))
    assert [row for _, row in rows(tmp_path / "one.jsonl")] == [item]
    (tmp_path / "own.json").write_text(json.dumps({"stories": [{"text": "a"}]}))
    assert [row for _, row in rows(tmp_path / "own.json")] == [{"text": "a"}]


def packed(kind: str, content: bytes) -> bytes:
    import pyarrow

    return gzip.compress(content) if kind == "gz" else bytes(pyarrow.compress(content, "zstd", asbytes=True))


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("second", [False, True])
def test_an_archive_that_breaks_off_fails_unless_it_is_allowed(kind: str, second: bool, tmp_path: Path) -> None:
    texts = [f"{i:064x}" * 3 for i in range(300)]
    content = packed(kind, "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    whole = packed(kind, b'{"text": "first"}\n') if second else b""
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(whole + content)
    assert kept(path) == ["first"] * second + texts
    path.write_bytes(whole + content[: len(content) // 2])
    source = [{"type": "jsonl", "path": str(path)}]
    with pytest.raises(DataError, match=r"breaks off .*a\.jsonl.*allow_damaged=true"):
        prepare(configuration(tmp_path / "out", source), QUIET)
    if not second:
        path.write_bytes(packed(kind, b'{"text": "first"}\n') + content[: len(content) // 2])
    manifest = prepare(configuration(tmp_path / "out", source, allow_damaged=True, eval_share=0), QUIET)
    assert read_rows(tmp_path / "out" / "processed" / "set" / "train.jsonl")[0]["text"] == "first"
    assert manifest["bad_rows"][-1][2].startswith("truncated or damaged")


NOTHING: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b"", "looks like an empty file"),
    ("a.jsonl", b"id,name\n1,x\n2,y\n", "looks like CSV"),
    ("a.csv", b"id,name\n1,x\n", "no known text or chat field 1"),
    ("a.jsonl", b"Once upon a time.\nThe end.\n", "looks like plain text"),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ("a.jsonl", b"<!DOCTYPE html>\n<html>404</html>", "looks like HTML"),
    ("a.jsonl", b"PK\x03\x04rest", "a zip archive"),
    ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "UTF-16"),
    ("a.jsonl.gz", b'{"text": "a"}\n', "begins like JSON"),
    ("a.parquet", b'{"text": "a"}\n', "cannot be read as parquet .* looks like JSON"),
    ("a.json", b'[{"text": "a"}', "not a valid JSON array"),
    ("a.json", b'{"title": "a"}', "no known text or chat field 1"),
]


@pytest.mark.parametrize(("name", "content", "message"), NOTHING)
def test_nothing_usable_is_an_error_that_says_what_the_file_looks_like(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare(configuration(tmp_path / "out", [{"type": "jsonl", "path": str(tmp_path / name)}]), QUIET)
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "processed" / "set").exists()


def test_one_file_without_a_document_among_others_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hildanext.progress import Console

    write_rows(tmp_path / "in" / "a.jsonl", [{"text": "a"}])
    (tmp_path / "in" / "b.jsonl").write_text("id,name\n1,x\n")
    prepare(configuration(tmp_path, [{"type": "jsonl", "path": str(tmp_path / "in")}], eval_share=0), Console())
    shown = "".join(capsys.readouterr())
    assert "no document from" in shown and "b.jsonl" in shown and "looks like CSV" in shown
    assert "dropped: bad row: invalid JSON 2" in shown


def test_numbers_depth_dates_and_bytes_never_end_in_a_traceback(tmp_path: Path) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    deep = "[" * 300 + "]" * 300
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "n": ' + "9" * 5000 + '}\n{"text": "b"}\n{"text": "c", "metadata": {"x": ' + deep + "}}\n"
        '{"text": "d", "x": ' + "[" * 90_000 + "]" * 90_000 + '}\n{"input_ids": [1, ' + "9" * 400 + "]}\n"
    )  # fmt: skip
    assert kept(tmp_path / "a.jsonl") == [
        "a number of too many digits", "b", "metadata, tools or arguments nested too deeply", "JSON nested too deeply",
        "field 'input_ids' holds a number beyond 64 bits",
    ]  # fmt: skip
    (tmp_path / "b.json").write_text('[{"text": "a", "n": ' + "9" * 5000 + "}]")
    with pytest.raises(DataError, match="not a valid JSON array"):
        kept(tmp_path / "b.json")
    when = datetime.datetime(2026, 1, 2)
    row = {"text": "a", "metadata": {"when": when, "raw": b"\xff", "name": b"x", "day": when.date()}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "c.parquet")
    source = [{"type": "jsonl", "path": str(tmp_path / "c.parquet")}]
    prepare(configuration(tmp_path / "out", source, eval_share=0), QUIET)
    written = read_rows(tmp_path / "out" / "processed" / "set" / "train.jsonl")
    assert written[0]["metadata"] == {"when": "2026-01-02T00:00:00", "raw": "ff", "name": "x", "day": "2026-01-02"}


def test_hidden_files_and_descriptions_are_not_data_and_linked_folders_are(tmp_path: Path) -> None:
    folder, other = tmp_path / "in", tmp_path / "other"
    for name in (".hidden.jsonl", "._a.jsonl", ".ipynb_checkpoints/a.jsonl", "dataset_infos.json", "__MACOSX/a.jsonl"):
        write_rows(folder / name, [{"text": "no"}])
    write_rows(folder / "A.JSONL", [{"text": "a"}])
    write_rows(other / "b.ndjson", [{"text": "b"}])
    (folder / "link").symlink_to(other, target_is_directory=True)
    (other / "back").symlink_to(folder, target_is_directory=True)
    assert [file.name for file in files_below(folder, (".jsonl", ".json", ".ndjson"))] == ["A.JSONL", "b.ndjson"]
    assert kept(folder) == ["a", "b"]


def test_a_byte_order_mark_is_not_part_of_a_story(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_bytes(b"\xef\xbb\xbfOne.<|endoftext|>Two.")
    source = build("sources", {"type": "tinystories", "path": str(tmp_path)})
    assert [document.text for document in source.documents()] == ["One.", "Two."]


def test_a_damaged_parquet_file_is_one_line_and_a_wide_cell_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert [len(row["text"]) for _, row in rows(tmp_path / "a.csv") if isinstance(row, dict)] == [200_000]
