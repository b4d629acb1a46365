# prepare-data, tokenize, runs: what is dropped is counted and shown, all dropped is an error, the template is compared.
# Entry points: pytest.
# Through the functions of the commands, with small files.
"""Tests of what data commands say and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.material import configuration, write_rows

from hildanext.cli import main
from hildanext.data.prepare import prepare
from hildanext.data.shards import ShardSet, check_tokenizer
from hildanext.data.tokenize import tokenize
from hildanext.data.tokenizers import load_tokenizer, storyworld_tokenizer
from hildanext.errors import DataError
from hildanext.progress import Console
from hildanext.run_dir import write_atomic

ASK, TOLD = {"role": "user", "content": "Who ran?"}, {"role": "assistant", "content": "Mia ran."}
CHAT = {"messages": [ASK, TOLD]}
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
TEMPLATE = NO_SYSTEM + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def model(folder: Path, template: str) -> str:
    tokenizer = storyworld_tokenizer(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def made(root: Path, rows: list[Any], **settings: Any) -> dict[str, Any]:
    path = write_rows(root / "rows.jsonl", rows)
    settings = {"window": 64, "pad_to_block": 16, "tokenizer": "storyworld", **settings}
    config = configuration(root, [{"type": "jsonl", "path": str(path)}], settings, eval_share=0)
    prepare(config, Console())
    return tokenize(config, Console())


def test_a_chat_that_the_template_refuses_is_dropped_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model(tmp_path / "model", TEMPLATE)
    refused = {"id": "bad", "messages": [{"role": "system", "content": "Be kind."}, ASK, TOLD]}
    manifest = made(tmp_path, [CHAT, refused], tokenizer=folder)
    split, shown = manifest["splits"]["sft_train"], "".join(capsys.readouterr()).replace("\n", " ")
    assert split["dropped"] == {"refused by the chat template": 1} and split["documents"] == 1
    assert split["refused"][0][0] == "bad" and "no system role" in split["refused"][0][1]
    assert "dropped: refused by the chat template 1" in shown and "sft_train bad: dropped" in shown
    with pytest.raises(DataError, match=r"none of 1 documents is left.*refused by the chat template 1.*no system role"):
        made(tmp_path / "all", [refused], tokenizer=folder)
    assert not (tmp_path / "all" / "tokenized" / "set").exists()


def test_chats_all_too_long_are_an_error_and_some_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = {"messages": [{"role": "user", "content": "dog " * 90}, TOLD]}
    with pytest.raises(DataError, match=r"none of 20 documents is left; dropped: longer than the window 20"):
        made(tmp_path, [{"messages": [{"role": "user", "content": f"dog {i} " * 90}, TOLD]} for i in range(20)])
    turns = [{"role": "user", "content": "dog " * 25}, TOLD, ASK, TOLD]
    each = [{"role": "user", "content": "Who?"}, TOLD, {"role": "user", "content": "cat " * 90}, TOLD]
    manifest = made(tmp_path / "some", [CHAT, long, {"messages": turns * 2}])
    assert manifest["splits"]["sft_train"]["shortened"] == 1
    cut = made(tmp_path / "each", [{"messages": each}], turns="each", over_length="drop")
    assert cut["splits"]["sft_train"]["dropped_turns"] == 1
    shown = "".join(capsys.readouterr()).replace("\n", " ")
    assert "dropped: longer than the window 1; chats shortened 1" in shown
    assert "turns longer than the window dropped 1" in shown


def test_a_template_without_an_end_of_turn_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path / "model", "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}")
    assert made(tmp_path, [CHAT], tokenizer=folder)["end_of_turn"] == "<|endoftext|>"
    assert "does not end every reply" in "".join(capsys.readouterr())
    assert made(tmp_path, [CHAT])["end_of_turn"] == "<|im_end|>"
    assert "does not end every reply" not in "".join(capsys.readouterr())
    assert made(tmp_path, [{"text": "a"}])["end_of_turn"] is None


def test_shards_with_chats_are_refused_by_a_model_with_another_template(tmp_path: Path) -> None:
    made(tmp_path, [CHAT, {"text": "Mia ran."}])
    shards = [ShardSet.open(tmp_path / "tokenized" / "set" / name) for name in ("sft_train", "train")]
    own = load_tokenizer(tmp_path / "tokenized" / "set" / "tokenizer")
    other = load_tokenizer(model(tmp_path / "model", TEMPLATE))
    for split in shards:
        check_tokenizer(split, own)
    check_tokenizer(shards[1], other)
    with pytest.raises(DataError, match=r"written with chat template [0-9a-f]{12}, the model's is"):
        check_tokenizer(shards[0], other)
    check_tokenizer(
        ShardSet(**{**vars(shards[0]), "manifest": {"tokenizer_hash": shards[0].manifest["tokenizer_hash"]}}), other
    )


def learned(root: Path, split: str) -> list[tuple[list[int], list[bool]]]:
    shards = ShardSet.open(root / "tokenized" / "set" / split)
    found = []
    for row in (shards[i] for i in range(len(shards))):
        for number in range(int(row.docs.max()) + 1):
            here = np.asarray(row.docs) == number
            if row.learn[here].any():
                found.append((row.tokens[here].tolist(), row.learn[here].tolist()))
    return found


def test_flags_that_say_do_not_learn_reach_the_shards(tmp_path: Path) -> None:
    row = {"input_ids": [5, 6, 7, 9, 9], "labels": [-100, 6, 7, -100, -100], "attention_mask": [1, 1, 1, 0, 0]}
    made(tmp_path, [row, {"input_ids": [5, 6], "labels": [5, -100]}], window=32)
    assert sorted(learned(tmp_path, "train")) == [
        ([5, 6, 0], [True, False, False]), ([5, 6, 7, 0], [False, True, True, True])
    ]  # fmt: skip
    first, after = {**TOLD, "content": "Ben ran.", "weight": 0}, [ASK, TOLD]
    made(tmp_path / "chat", [{"messages": [ASK, first, *after]}], pad_to_block=0)
    ids, marks = learned(tmp_path / "chat", "sft_train")[0]
    tokenizer = load_tokenizer(tmp_path / "chat" / "tokenized" / "set" / "tokenizer")
    kept = [token for token, mark in zip(ids, marks, strict=True) if mark]
    assert tokenizer.decode(kept) == "Mia ran.<|im_end|>" and "Ben ran." in tokenizer.decode(ids)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"heartbeat": "x"}', '{"state": "running", "pid": []}'])
def test_one_bad_status_does_not_hide_the_other_runs(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"state": "done", "step": 3, "started": "2026", "loss": "nan?"}
    write_atomic(tmp_path / "good" / "status.json", json.dumps(good))
    write_atomic(tmp_path / "bad" / "status.json", content)
    assert main(["runs", "--json", "--set", f"paths.runs={tmp_path}"]) == 0
    found = {run["id"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert found["good"]["state"] == "done" and found["bad"]["state"] == "lost"
    assert found["bad"].get("error") or content.startswith('{"state"')


def test_the_commands_exit_2_with_one_line_where_nothing_is_usable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("id,name\n1,x\n")
    source = json.dumps([{"type": "jsonl", "path": str(tmp_path / "a.csv")}])
    given = ["--set", f"paths.data={tmp_path}", "--set", "data.name=x", "--set", f"data.sources={source}"]
    assert main(["prepare-data", "--quiet", *given]) == 2
    assert "looks like CSV" in capsys.readouterr().err
