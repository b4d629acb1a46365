# Prompts from files of every kind, and prompts of our own: each once, the same for a seed, held-out ones apart.
# Entry points: pytest.
# Rows with their replies are prompts too; what is asked is written out by hand here.
"""Tests of data/prompts.py and data/prompt_writer.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hildanext.data.prompt_words import TEMPLATES, WEIGHTS, WORDS
from hildanext.data.prompt_writer import GAP, kept_for_evaluation, write_prompts
from hildanext.data.prompts import read_prompts
from hildanext.errors import DataError

ASK = {"role": "user", "content": "Why?"}
TOLD = {"role": "assistant", "content": "So."}
ROWS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"prompt": "Why?"}, [ASK]),
    ({"prompt": [ASK]}, [ASK]),
    ({"prompt": "Why?", "completion": "So."}, [ASK]),
    ({"messages": [ASK, TOLD]}, [ASK]),
    ({"messages": [ASK, TOLD, ASK]}, [ASK, {**TOLD, "learn": False}, ASK]),
    ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, [ASK]),
    ({"instruction": "Why?", "input": "", "output": "So."}, [ASK]),
    ({"instruction": "Add.", "input": "1 2"}, [{"role": "user", "content": "Add.\n\n1 2"}]),
    ({"question": "Why?", "answer": "So."}, [ASK]),
    ({"system": "Be kind.", "prompt": "Why?"}, [{"role": "system", "content": "Be kind."}, ASK]),
]


def written(folder: Path, *rows: Any) -> Path:
    """A file of JSON lines."""
    (folder / "p.jsonl").write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return folder / "p.jsonl"


@pytest.mark.parametrize(("row", "wanted"), ROWS, ids=lambda value: "+".join(value) if isinstance(value, dict) else "")
def test_a_row_is_asked_up_to_where_its_reply_belongs(row: Any, wanted: Any, tmp_path: Path) -> None:
    found, _ = read_prompts(written(tmp_path, row, {"prompt": "Another?"})).prompts
    assert list(found.messages) == wanted and found.id == "p.jsonl:1" and found.row == row


def test_what_cannot_be_asked_is_counted_and_a_repeated_prompt_is_asked_once(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a"},
        "{cut",
        {"prompt": "a"},
        {"text": "b"},
        {"messages": [TOLD]},
        {"prompt": "  "},
        {"prompt": "c"},
    ]
    found = read_prompts(written(tmp_path, *rows, {"id": 7, "prompt": "d"}))
    assert [one.messages[0]["content"] for one in found.prompts] == ["a", "c", "d"] and found.prompts[2].id == "7"
    assert len(found.prompts) + sum(found.skipped.values()) == found.read == 8
    assert (
        found.skipped["repeated"] == 1 and found.skipped["invalid JSON"] == 1 and found.skipped["no user message"] == 1
    )
    assert len(read_prompts(tmp_path / "p.jsonl", limit=2).prompts) == 2
    assert [one.messages[0]["content"] for one in read_prompts(tmp_path / "p.jsonl", "text").prompts] == ["b"]


def test_a_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"Wie geht's?\r\n\n  Who?\n" + b"\xff\n")
    found = read_prompts(tmp_path / "p.txt")
    assert [one.messages[0]["content"] for one in found.prompts] == ["Wie geht's?", "Who?"]
    assert found.skipped == {"invalid UTF-8": 1}


@pytest.mark.parametrize(("rows", "words"), [((), "an empty file"), (({"text": "a"},), "answer.field")])
def test_a_file_without_prompts_is_refused_on_one_line(rows: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_prompts(written(tmp_path, *rows))
    for path, said in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(DataError, match=said):
            read_prompts(path)


def test_real_instruction_and_question_files_are_prompts(assets: Path) -> None:
    asked = read_prompts(assets / "rasbt-instruct" / "instruction-data.json")
    assert asked.read == 1100 == len(asked.prompts) + asked.skipped.get("repeated", 0)
    first = asked.prompts[0].messages[0]["content"]
    assert "\n\nfreind" in first and "incorrect" not in first
    assert len(read_prompts(assets / "gsm8k" / "train.jsonl", limit=50).prompts) == 50
    code = read_prompts(assets / "mbpp" / "mbpp.jsonl", "text", 5)
    assert code.prompts[0].messages[0]["content"].startswith("Write a function")


def test_thousands_of_our_own_prompts_are_different_and_the_same_for_a_seed() -> None:
    found = write_prompts(4000, seed=1)
    texts = [one.text for one in found]
    assert len(set(texts)) == 4000 and texts == [one.text for one in write_prompts(4000, seed=1)]
    assert len(set(texts) & {one.text for one in write_prompts(4000, seed=2)}) < 2000
    assert {one.kind for one in found} == set(TEMPLATES) and not any(mark in " ".join(texts) for mark in "{}")
    assert all(text[0].isupper() and text == text.strip() for text in texts)
    assert not any(f" a {vowel}" in text for text in texts for vowel in ("a", "e", "i", "o"))


def test_held_out_prompts_are_never_written_otherwise() -> None:
    ours, theirs = write_prompts(2000, 1), write_prompts(300, 1, held_out=True)
    assert not {one.text for one in ours} & {one.text for one in theirs}
    assert all(kept_for_evaluation(one.text) for one in theirs) and len(theirs) == 300


def test_every_gap_has_its_words_and_every_kind_its_weight() -> None:
    gaps = {found[1] for kind in TEMPLATES.values() for text in kind for found in GAP.findall(text)}
    assert gaps <= set(WORDS) and set(WORDS) <= gaps and set(WEIGHTS) == set(TEMPLATES)
    assert all(len(set(words)) == len(words) > 1 and all(words) for words in WORDS.values())


def test_more_prompts_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hildanext.data.prompt_writer.TEMPLATES", {"question": ("Is {season} {color}?",)})
    monkeypatch.setattr("hildanext.data.prompt_writer.WEIGHTS", {"question": 1})
    assert 40 <= len(write_prompts(40)) < 53
    with pytest.raises(DataError, match="ask for fewer"):
        write_prompts(53)
