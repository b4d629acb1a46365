# convert: what it decides for a machine, and one small conversion that is stopped, goes on and is not done twice.
# Entry points: pytest.
# Decisions are checked by what they must satisfy, over a grid of machines; the conversion is of a tiny parent.
"""Tests of train/choice.py, train/convert.py and the command convert."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from train.material import losses, stop_after, texts

from hildanext.cli import main
from hildanext.errors import ConfigError, ModelError
from hildanext.train.choice import Facts, as_values, choose, seconds_of, steps_for

FACTS = Facts(135_000_000, 8192, None, False, False, True, True, False, [90, 100, 120, 130], 1800.0)


def everything(_: Mapping[str, Any]) -> bool:
    return True


def test_spans_of_time_are_read_and_what_is_none_is_named() -> None:
    assert [seconds_of(text) for text in ("30m", "2h", "1h30m", "90s", "0.5h")] == [1800, 7200, 5400, 90, 1800]
    for text in ("", "30", "0m", "m", "-5m", "later"):
        with pytest.raises(ConfigError, match="no span of time"):
            seconds_of(text)


@pytest.mark.parametrize("cuda", [False, True])
def test_whatever_is_chosen_fits_together(cuda: bool) -> None:
    grid = itertools.product(
        (260_000, 135_000_000, 7_000_000_000), (0, 48, 2048), (None, 12), (60.0, 9e4), (False, True)
    )
    for parameters, longest, block, seconds, chats in grid:
        facts = replace(
            FACTS, parameters=parameters, longest=longest, block=block, seconds=seconds, chats=chats, cuda=cuda
        )
        values = as_values(choose(facts, everything))
        window, size = values["tokenize.window"], values["ladder.fixed"]
        assert window % size == 0 and (not longest or window <= longest)
        assert ("model.shift" in values) == (block is None) and values.get("model.shift", "clean") == "clean"
        assert size == block or block is None
        assert (values.get("train.split") == "sft_train") == chats
        assert 1e-5 <= values["optimizer.lr"] <= 2e-3
        assert values["train.autocast"] == "none", "this processor has no units for it"


def test_memory_is_saved_step_by_step_and_the_batch_stays_the_same() -> None:
    tried: list[dict[str, Any]] = []

    def none(values: Mapping[str, Any]) -> bool:
        tried.append(dict(values))
        return False

    with pytest.raises(ModelError, match="no way of training"):
        choose(FACTS, none)
    order = [(one["model.adapter.kind"], one["train.gradient_checkpointing"]) for one in tried]
    assert list(dict.fromkeys(order)) == [("none", False), ("none", True), ("lora", False), ("lora", True)]
    assert {one["train.batch"] * one["train.accumulate"] for one in tried} == {8}
    with pytest.raises(ModelError, match=r"pip install 'hildanext\[quant\]'"):
        choose(replace(FACTS, adapters=False), none)
    lora = choose(FACTS, lambda values: values["model.adapter.kind"] == "lora")
    full = choose(FACTS, everything)
    assert as_values(lora)["optimizer.lr"] == 4 * as_values(full)["optimizer.lr"] == 4e-4
    assert all(one.reason for one in lora)


def test_what_is_asked_for_stays_and_the_rest_follows_it() -> None:
    asked = {"tokenize.window": 256, "train.batch": 2, "model.adapter.kind": "lora", "ladder.fixed": 32}
    found = choose(FACTS, everything, asked)
    values = as_values(found)
    assert {place: values[place] for place in asked} == asked
    assert values["train.accumulate"] == 2 and values["ladder.decay_to"] == 32 and values["optimizer.lr"] == 4e-4
    reasons = {one.place: one.reason for one in found}
    assert reasons["tokenize.window"] == "as asked; 128 would have been chosen"


def test_steps_are_what_the_budget_buys_and_no_more_than_the_data_bear() -> None:
    steps = as_values(steps_for(1000.0, 2.0, 10**6, 1024))
    assert steps["train.steps"] == 450 and steps["train.checkpoint_every"] == 150
    assert as_values(steps_for(1000.0, 0.01, 10**5, 1000))["train.steps"] == 1000
    with pytest.raises(ConfigError, match="steps of 9.0 s"):
        steps_for(60.0, 9.0, 10**6, 1024)


def test_one_line_converts_is_stopped_goes_on_and_is_not_done_twice(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts(200, 5))
    (tmp_path / "rows.jsonl").write_text(rows)
    line = ["convert", str(parent), "--data", "rows.jsonl", "--budget", "2h", "--run-dir", "runs/own"]
    sets = ["train.steps=6", "train.checkpoint_every=2", "train.batch=4", "optimizer.lr=0.001"]
    line += [word for one in sets for word in ("--set", one)]
    stop_after(monkeypatch, 3, signal.SIGTERM)
    assert main(line) == 130
    capsys.readouterr()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "own"
    written = json.loads((run / "convert.json").read_text())
    reasons = {one["place"]: one["reason"] for one in json.loads((run / "why.json").read_text())["decisions"]}
    assert reasons["train.steps"].startswith("as asked") and reasons["model.shift"]
    assert written["train"]["steps"] == 6 and written["optimizer"]["lr"] == 0.001
    assert written["model"]["path"] == str(parent) and written["model"]["shift"] == "clean"
    assert not (run / ".probe").exists() and not (run / "report.json").exists()
    assert main(line) == 0
    out, err = capsys.readouterr()
    assert "goes on with it" in err and "resumed from" in err and "hildanext generate --model runs/own" in err
    assert len(losses(run)) == 6 and (run / "model" / "config.json").is_file()
    before = (run / "metrics.jsonl").read_bytes()
    assert main([*line, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "nothing was trained" in err and json.loads(out)["steps"] == 6
    assert (run / "metrics.jsonl").read_bytes() == before
    (tmp_path / "rows.jsonl").write_text(rows + rows)
    assert main(line) == 2
    assert "is a conversion of other things (bytes" in capsys.readouterr().err
    assert main(["convert-wsd", "--config", str(run / "convert.json"), "--print-plan", "--quiet"]) == 0


def test_a_conversion_of_chats_learns_the_answers(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chats = [
        [{"role": "user", "content": a}, {"role": "assistant", "content": b}]
        for a, b in zip(texts(90, 1), texts(90, 2), strict=True)
    ]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in chats))
    line = ["convert", str(parent), "--data", "chats.jsonl", "--set", "train.steps=4", "--set", "train.batch=2"]
    assert main(line) == 0
    assert "--chat --prompt" in capsys.readouterr().err
    run = tmp_path / "runs" / f"convert-{parent.parent.name}-chats"
    assert json.loads((run / "convert.json").read_text())["train"]["split"] == "sft_train"


def test_what_cannot_be_converted_is_said_before_anything_is_written(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "one"}\n')
    said = {"gone.jsonl": "no such file", "rows.jsonl": "too few documents"}
    for data, words in said.items():
        assert main(["convert", str(parent), "--data", data]) == 2
        assert words in capsys.readouterr().err
    assert main(["convert", str(parent), "--data", "rows.jsonl", "--budget", "soon"]) == 2
    assert "no span of time" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
