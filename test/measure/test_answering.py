# A parent's answers: transformers' own text, nothing asked twice after a kill, every answer accounted for.
# Entry points: pytest.
# The bundled parent answers; prompts are short, so that some answers end by themselves and some do not.
"""Tests of hildanext answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hildanext.cli import main
from hildanext.config import Config, load_config
from hildanext.config.model import ModelConfig
from hildanext.data.chat import generation_prompt
from hildanext.data.prepare import prepare
from hildanext.errors import ConfigError, DataError, Interrupted
from hildanext.measure import answering
from hildanext.measure.answer_journal import Answered, Journal
from hildanext.measure.answering import answer
from hildanext.models.denoiser import network
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.world import corpus

NEW = 9
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def parent() -> Any:
    return load_model(ModelConfig(path="tiny-parent"))


@pytest.fixture
def asked(parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of seven prompts of the story world; the model is loaded once."""
    monkeypatch.setattr(answering, "load_model", lambda model, console: parent)
    rows = [record["messages"][:-1] for record in [*corpus("chat", 4, 4), *corpus("arithmetic", 4, 3)]]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"messages": list(row)}) + "\n" for row in rows))
    return tmp_path / "p.jsonl"


def wanting(asked: Path, *more: str) -> Config:
    """The configuration of an answer to `asked`."""
    given = ["model.path=tiny-parent", f"answer.path={asked}", f"answer.output={asked.parent / 'a.jsonl'}"]
    return load_config(None, [*given, f"decode.max_new_tokens={NEW}", "decode.requests=3", *more])


def rows_in(config: Config) -> list[dict[str, Any]]:
    """The rows that were written."""
    return [json.loads(line) for line in Path(config.answer.output).read_text().splitlines()]


def reconciles(found: dict[str, Any], config: Config) -> bool:
    """Whether every row read and every answer wanted has its place."""
    prompts = found["prompts"]
    refused, skipped = sum(prompts["refused"].values()), sum(prompts["skipped"].values())
    return bool(
        prompts["read"] == prompts["asked"] + refused + skipped
        and found["wanted"] == prompts["asked"] * config.answer.samples
        and found["answered"] == found["written"] + sum(found["dropped"].values())
        and found["answered"] == found["finished"] + found["unfinished"] + found["dropped"].get("empty", 0)
        and found["written"] == len(rows_in(config))
    )


def test_answers_are_transformers_greedy_text_in_the_order_of_the_prompts(asked: Path, parent: Any) -> None:
    config = wanting(asked, "answer.unfinished=keep")
    found = answer(config, QUIET)
    assert reconciles(found, config) and found["finished"] and found["unfinished"] and found["written"] == 7
    for row, line in zip(rows_in(config), asked.read_text().splitlines(), strict=True):
        messages = json.loads(line)["messages"]
        assert [{**turn, "learn": True} for turn in row["messages"][:-1]] == [
            {**turn, "learn": True} for turn in messages
        ]
        assert not any(turn["learn"] for turn in row["messages"][:-1] if turn["role"] == "assistant")
        assert row["messages"][-1]["role"] == "assistant"
        ids = torch.tensor([generation_prompt(messages, parent.tokenizer)])
        whole = network(parent.denoiser).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0,
            suppress_tokens=[parent.denoiser.mask_id],
        )[0, ids.shape[1] :]  # fmt: skip
        ended = int(whole[-1]) in parent.denoiser.end_ids
        assert row["metadata"] == {"finished": ended, "tokens": len(whole), "greedy": True, "model": "tiny-parent"}
        assert (
            row["messages"][-1]["content"].split() == parent.tokenizer.decode(whole, skip_special_tokens=True).split()
        )


def test_after_a_kill_the_rest_is_answered_and_the_file_is_the_same(
    asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = wanting(asked, "decode.temperature=0.8", "answer.samples=2", "answer.greedy=true")
    answer(config, QUIET)
    output = Path(config.answer.output)
    wanted, journal = output.read_bytes(), output.with_name(".a.jsonl.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    output.unlink()
    journal.write_bytes(b"".join([*lines[:3], b"\0\0\n", *lines[3:6], lines[6][:-9]]))
    begun, continued = list[Any](), answering.continued
    monkeypatch.setattr(
        answering, "continued", lambda model, rows, *more: begun.extend(rows) or continued(model, rows, *more)
    )
    found = answer(config, QUIET)
    assert output.read_bytes() == wanted and len(lines) == 15
    assert len(begun) == found["new"] == 14 - 5 and reconciles(found, config)
    begun.clear()
    assert answer(config, QUIET)["new"] == 0 and not begun and output.read_bytes() == wanted
    more = wanting(asked, "decode.temperature=0.8", "answer.samples=3", "answer.greedy=true")
    found = answer(more, QUIET)
    assert len(begun) == 7 and {row.sample for row in begun} == {2} and reconciles(found, more)


def test_a_signal_keeps_what_there_is_and_exits_with_130(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    add, config = Journal.add, wanting(asked)

    def interrupted(self: Journal, given: Answered) -> None:
        if len(self.answers) == 4:
            raise KeyboardInterrupt
        add(self, given)

    monkeypatch.setattr(Journal, "add", interrupted)
    words = [f"--prompts={asked}", f"--out={config.answer.output}", f"--max-new-tokens={NEW}"]
    assert main(["answer", "--model", "tiny-parent", "--quiet", *words]) == 130
    assert "4 of 7 answered; the same command goes on" in capsys.readouterr().err
    assert 0 < len(rows_in(config)) <= 4
    monkeypatch.setattr(Journal, "add", add)
    assert main(["answer", "--model", "tiny-parent", "--quiet", "--json", *words, "--unfinished", "keep"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new"] == 3 and found["written"] == 7


def test_what_gets_no_answer_is_counted_by_its_reason(
    asked: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, parent: Any
) -> None:
    lines = asked.read_text().splitlines()
    row = json.dumps({"prompt": "cat " * 600})
    asked.write_text("\n".join([lines[0], row, lines[0], "{", lines[5], lines[6]]))
    config = wanting(asked)
    found = answer(config, QUIET)
    assert found["prompts"]["refused"] == {"longer than the window": 1}
    assert found["prompts"]["skipped"] == {"repeated": 1, "invalid JSON": 1} and reconciles(found, config)
    assert "left out: invalid JSON" in capsys.readouterr().err
    assert all(one["metadata"]["finished"] for one in rows_in(config)) and found["dropped"].keys() <= {"unfinished"}
    ends = parent.denoiser.end_ids
    monkeypatch.setattr(
        answering, "continued", lambda model, rows, *more: [row for row in rows if row.take(min(ends)) is None]
    )
    empty = wanting(asked, f"answer.output={asked.parent / 'b.jsonl'}")
    with pytest.raises(
        DataError, match=r"nothing to train on, 0 rows from 3 answers .*dropped: empty 3; .*--unfinished"
    ):
        answer(empty, QUIET)
    assert not rows_in(empty)


def test_rows_are_chats_for_prepare_data(asked: Path) -> None:
    config = wanting(asked, "answer.unfinished=keep", f"paths.data={asked.parent}")
    answer(config, QUIET)
    source = json.dumps([{"type": "jsonl", "path": config.answer.output}])
    more = load_config(None, [f"paths.data={asked.parent}", f"data.sources={source}", "data.workers=1"])
    manifest = prepare(more, QUIET)
    assert manifest["documents"]["kept"] == 7 and manifest["files"]["train"]["documents"] == 0


def test_answers_of_other_settings_are_not_mixed(asked: Path) -> None:
    config = wanting(asked)
    answer(config, QUIET)
    before = Path(config.answer.output).read_bytes()
    with pytest.raises(DataError, match=r"max_new_tokens 9, now 5.*name another --out"):
        answer(wanting(asked, "decode.max_new_tokens=5"), QUIET)
    held = Journal.open(Path(config.answer.output), answering._deciding(config, load_model(config.model)))
    with pytest.raises(DataError, match="another process"):
        answer(config, QUIET)
    held.close()
    journal = Path(config.answer.output).with_name(".a.jsonl.journal")
    journal.write_bytes(b"x" + journal.read_bytes())
    with pytest.raises(DataError, match="first line"):
        answer(config, QUIET)
    assert Path(config.answer.output).read_bytes() == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["answer.samples=2"], "temperature 0"),
        (["decode.temperature=1", "decode.seed=-1"], "decode.seed"),
        (["answer.path=nowhere.jsonl"], "no such file"),
        (["answer.output=."], "a folder"),
        (["answer.output=PROMPTS"], "not answered here"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_answered(more: list[str], words: str, asked: Path) -> None:
    prompts = asked.read_bytes()
    with pytest.raises((ConfigError, DataError), match=words):
        answer(wanting(asked, *(one.replace("PROMPTS", str(asked)) for one in more)), QUIET)
    assert list(asked.parent.iterdir()) == [asked] and asked.read_bytes() == prompts


def test_prompts_of_our_own_are_written_once_and_replace_nothing(tmp_path: Path, capsys: Any) -> None:
    path, words = (
        tmp_path / "p.jsonl",
        ["answer", "--quiet", "--write-prompts", "30", "--out", str(tmp_path / "p.jsonl")],
    )
    assert main(words) == 0 == main(words)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == 30 and rows[0]["id"] == "ask-0-1"
    assert main([*words, "--set", "seed=1"]) == 2 and "name another --out" in capsys.readouterr().err
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert main([*words[:-1], str(tmp_path / "h.jsonl"), "--held-out"]) == 0


def test_as_a_job_its_progress_and_report_are_in_the_run(asked: Path, tmp_path: Path) -> None:
    config, run = wanting(asked), tmp_path / "run"
    words = [f"--prompts={asked}", f"--out={config.answer.output}", f"--max-new-tokens={NEW}"]
    assert main(["answer", "--model", "tiny-parent", "--quiet", *words, "--run-dir", str(run)]) == 0
    status, report = (json.loads((run / name).read_text()) for name in ("status.json", "report.json"))
    assert (status["state"], status["step"], status["total"]) == ("done", 7, 7) and report["answered"] == 7


def test_an_interrupted_run_says_so_to_its_caller(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(answering, "continued", stopped)
    with pytest.raises(Interrupted, match="0 of 7 answered"):
        answer(wanting(asked), QUIET)
