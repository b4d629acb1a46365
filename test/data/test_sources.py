# Sources: offline errors that say what would serve, formats per file, story cutting, datasets from a local folder.
# Entry points: pytest.
# Every plugin is listed from the registry; none touches the network.
"""Tests of data/sources."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from data.material import write_rows

from hildanext.data.document import BadRow, Document, as_json, from_json
from hildanext.data.source import Source
from hildanext.errors import DataError
from hildanext.registry import build, names


def texts(source: Source) -> list[str | None]:
    return [document.text for document in source.documents()]


@pytest.mark.parametrize("name", sorted(set(names("sources")) - {"storyworld"}))
def test_without_local_data_the_error_names_source_path_and_variable(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        build("sources", {"type": name}).units()
    assert f"source {name}" in str(caught.value)
    assert f"HILDANEXT_{name.upper()}" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["dolma", "tinystories", "jsonl"])
def test_a_variable_or_the_raw_folder_serves_instead_of_a_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "data" / "raw" / name / "a.jsonl", [{"text": "raw"}])
    write_rows(tmp_path / "else" / "a.jsonl", [{"text": "else"}])
    assert texts(build("sources", {"type": name})) == ["raw"]
    monkeypatch.setenv(f"HILDANEXT_{name.upper()}", str(tmp_path / "else"))
    assert texts(build("sources", {"type": name})) == ["else"]


def test_files_with_other_metadata_and_other_formats_go_together(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"id": "1", "text": "a", "metadata": {"length": 3}}])
    write_rows(tmp_path / "b.jsonl", [{"id": "2", "text": "b", "metadata": {"length": "x", "deep": {"y": [1]}}}])
    write_rows(tmp_path / "c.jsonl", [{"question": "q", "answer": "r"}])
    found = list(build("sources", {"type": "jsonl", "path": str(tmp_path)}).documents())
    assert [document.id for document in found] == ["1", "2", "c.jsonl:1"]
    assert found[1].metadata == {"length": "x", "deep": {"y": [1]}} and found[2].is_chat


def test_a_file_may_mix_the_shapes_of_its_rows_unless_one_is_named(tmp_path: Path) -> None:
    rows = [
        {"text": "a"},
        {"prompt": "p", "response": "r"},
        {"other": 1},
        {"text": None, "question": "q", "answer": "r"},
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    source = build("sources", {"type": "jsonl", "path": str(path)})
    found = list(source.read(source.units()[0]))
    assert [row.reason if isinstance(row, BadRow) else row.is_chat for row in found] == [
        False, True, "missing field 'prompt'", True
    ]  # fmt: skip
    named = build("sources", {"type": "jsonl", "path": str(path), "format": "text:text"})
    assert list(named.read(named.units()[0]))[1] == BadRow("missing field 'text'", str(path), 2)


def test_a_named_field_is_read(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "no", "own": "yes"}])
    assert texts(build("sources", {"type": "jsonl", "path": str(path), "format": "text:own"})) == ["yes"]


@pytest.mark.parametrize(
    ("split", "content", "expected"),
    [
        ("auto", "One.\n\nTwo.\n<|endoftext|>\nThree.<|endoftext|>", ["One.\n\nTwo.", "Three."]),
        ("auto", "One.\n\nTwo.\nThree.\n\nFour.\n", ["One.\n\nTwo.", "Three.\n\nFour."]),
        ("line", "One.\n\nTwo.\nThree.", ["One.", "Two.", "Three."]),
    ],
)
def test_a_text_file_is_cut_into_stories(split: str, content: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    assert texts(build("sources", {"type": "tinystories", "path": str(tmp_path), "split": split})) == expected


def test_a_story_that_is_too_long_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"One.<|endoftext|>{'x' * 40}\n{'x' * 40}<|endoftext|>Two.", encoding="utf-8")
    source = build("sources", {"type": "tinystories", "path": str(tmp_path), "max_story_bytes": 70})
    found = list(source.read(source.units()[0]))
    assert [row.reason if isinstance(row, BadRow) else row.text for row in found] == [
        "One.",
        "story over 70 bytes",
        "Two.",
    ]


def test_a_dataset_saved_by_the_library_and_a_folder_of_rows_are_both_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).save_to_disk(str(tmp_path / "saved"))
    assert texts(build("sources", {"type": "huggingface", "dataset": str(tmp_path / "saved"), "limit": 2})) == [
        "a",
        "b",
    ]
    write_rows(tmp_path / "rows" / "train.jsonl", [{"prompt": "p", "response": "r"}])
    found = list(build("sources", {"type": "huggingface", "dataset": str(tmp_path / "rows")}).documents())
    assert [document.messages and document.messages[1]["content"] for document in found] == ["r"]


def test_a_dataset_that_cannot_be_opened_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    source = build("sources", {"type": "huggingface", "dataset": str(tmp_path / "empty")})
    with pytest.raises(DataError, match="cannot be opened"):
        list(source.documents())


@pytest.mark.parametrize("name", names("sources"))
def test_every_source_keeps_the_contract(name: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": f"t{i}"} for i in range(5)])
    small = {"stories": 3, "chat": 2, "arithmetic": 1, "coding": 1}
    fields = {"storyworld": small, "huggingface": {"dataset": str(tmp_path)}}.get(name, {"path": str(tmp_path)})
    source = build("sources", {"type": name, "weight": 2.0, **fields})
    documents = list(source.documents())
    assert documents == list(source.documents()) and source.weight == 2.0
    assert documents == [row for unit in source.units() for row in source.read(unit)]
    assert len({document.id for document in documents}) == len(documents) >= 5
    assert all(from_json(as_json(document)) == document for document in documents)
    assert json.dumps(source.version()) and pickle.loads(pickle.dumps(source)) == source
    assert all(field.description for field in type(source).model_fields.values())


def test_story_world_units_cover_every_record_once() -> None:
    settings = {"type": "storyworld", "stories": 2003, "chat": 3, "arithmetic": 0, "coding": 2}
    source = build("sources", settings)
    spans = [(unit.name, unit.start, unit.count) for unit in source.units()]
    assert spans == [("stories", 0, 2000), ("stories", 2000, 3), ("chat", 0, 3), ("coding", 0, 2)]
    document = next(iter(source.read(source.units()[2])))
    assert isinstance(document, Document) and document.is_chat and "check" in document.metadata


@pytest.mark.parametrize(
    "document",
    [
        Document("1", "a", text="\u00e9\u2028\n"),
        Document("2", "a", messages=({"role": "user", "content": "x"},), metadata={"n": 1}),
        Document("3", "a", tokens=(1, 2)),
    ],
)
def test_a_document_survives_its_line(document: Document) -> None:
    line = as_json(document)
    assert "\n" not in line and from_json(line) == document
