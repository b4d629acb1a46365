# hildanext init: every goal on every machine is a configuration its command takes, each value with a reason; questions.
# Entry points: pytest.
# Comments are keys that begin with //: the loader drops them wherever they stand, and a misspelt key stays an error.
"""Tests of commands/init.py, config/start.py and comments in configurations."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from hildanext.cli import main
from hildanext.config import config_schema, load_config
from hildanext.config.for_command import command_config
from hildanext.config.places import value_at
from hildanext.config.start import GOALS, MACHINES, Plan, choices, commented
from hildanext.errors import ConfigError
from hildanext.registry import plugin_problems


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_written_is_what_the_command_reads(goal: str, machine: str, tmp_path: Path) -> None:
    for model in ("models/some", "tiny"):
        found = choices(Plan(goal, machine, model, bundled=model == "tiny"))
        file = tmp_path / f"{goal}.json"
        file.write_text(commented(found, "x"))
        config = command_config(GOALS[goal], file, (), plugin_problems)
        for one in found:
            read = value_at(config, one.place)
            read = [item.model_dump() for item in read] if one.place in ("data.sources", "rl.rewards") else read
            read = read.model_dump(exclude_unset=True) if one.place == "model.adapter" else read
            assert (list(read) if isinstance(read, tuple) else read) == one.value, one.place
            assert len(one.why) > 10
        places = [one.place for one in found]
        assert len(places) == len(set(places))


def test_flags_answer_the_questions_and_data_is_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.json"
    words = ["init", "convert", "--model", "tiny-parent", "--machine", "cpu", "--out", str(file)]
    assert main([*words, "--data", "a.jsonl=0.7", "--data", "b.txt=0.3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == f"hildanext convert-wsd --config {file}"
    sources = [
        {"type": "jsonl", "path": "a.jsonl", "weight": 0.7},
        {"type": "tinystories", "path": "b.txt", "weight": 0.3},
    ]
    written = json.loads(file.read_text())
    assert written["data"]["sources"] == sources and "weight" in written["data"]["// sources"]
    assert main(words) == 2 and "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_three_questions_are_asked_a_wrong_answer_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", Terminal("train\nserve\n\ngpu8\n"))
    assert main(["init"]) == 0
    said, config = capsys.readouterr().err, load_config(tmp_path / "serve.json")
    assert said.count("[") == 4 and "one of convert, sft, rl, serve" in said
    assert config.model.path == "tiny" and config.decode.requests == 32


def test_where_nobody_can_be_asked_the_flags_are_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["init"]) == 2 and "--machine" in capsys.readouterr().err


def test_comments_are_dropped_everywhere_and_a_typo_is_not_one(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    rows = {"//": "top", "seed": 3, "data": {"// sources": "why", "sources": [{"type": "storyworld", "//": "x"}]}}
    file.write_text(json.dumps(rows))
    config = load_config(file, check=plugin_problems)
    assert config.seed == 3 and config.data.sources[0].model_dump() == {"type": "storyworld"}
    file.write_text(json.dumps({"/seed": 3}))
    with pytest.raises(ConfigError, match="/seed"):
        load_config(file)
    schema = config_schema()
    assert (
        schema["patternProperties"]
        == schema["$defs"]["TrainConfig"]["patternProperties"]
        == {"^//": {"type": "string"}}
    )
