# Curves of runs: what is drawn stands where the numbers say, tables name what differs, a page has both curves.
# Entry points: pytest.
# A run is written by hand; positions on the canvas are reckoned here a second time, from the numbers.
"""Tests of report/curves.py, `runs show` and `runs compare`, the bar and --resume, --watch."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hildanext import cli, commands
from hildanext.errors import HildaError
from hildanext.progress import Bar, span
from hildanext.report.curves import MARKS, plot, smoothed, watched


def make(root: Path, name: str, slope: float, rate: float) -> Path:
    run = root / name
    run.mkdir(parents=True)
    status = {"state": "done", "command": "sft", "step": 9, "total": 9, "started": "2026-01-01T00:00:00+00:00",
              "ended": "2026-01-01T00:02:00+00:00"}  # fmt: skip
    rows = [{"step": 0, "eval": {"eval_nll": 5.0}}]
    rows += [{"step": step, "loss": 5 - slope * step, "tokens_per_second": 10.0 * step} for step in range(1, 10)]
    rows += [{"step": 9, "eval": {"eval_nll": 5 - 9 * slope}}]
    (run / "status.json").write_text(json.dumps(status))
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"step": 10, "lo')
    (run / "config.json").write_text(json.dumps({"seed": 1, "optimizer": {"lr": rate}}))
    return run


def test_a_point_stands_where_its_numbers_say() -> None:
    curves = {"one": [(0.0, 4.0), (50.0, 3.0), (100.0, 2.0)], "two": [(100.0, 6.0)]}
    rows = plot(curves, width=11, height=5).splitlines()
    marks = {
        (column, row): mark for row in range(5) for column, mark in enumerate(rows[row][11:]) if mark in MARKS
    }  # fmt: skip
    assert marks == {(0, 2): MARKS[0], (5, 3): MARKS[0], (10, 4): MARKS[0], (10, 0): MARKS[1]}
    assert rows[0].startswith("    6.000") and rows[4].startswith("    2.000") and rows[-1].strip() == "● one  ○ two"
    assert "0" in rows[-2] and rows[-2].endswith("step 100") and plot({"x": []}) == ""


def test_smoothing_is_the_mean_with_the_points_before() -> None:
    points = [(float(step), float(step % 2)) for step in range(80)]
    assert [y for _, y in smoothed(points)][:3] == [0.0, 0.5, 0.5] and smoothed(points[:5]) == points[:5]


def test_compare_names_what_differs_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "a", 0.1, 1e-3), make(tmp_path, "b", 0.3, 5e-3)
    html = tmp_path / "out" / "c.html"
    words = ["runs", "compare", "a", str(tmp_path / "b"), "--set", f"paths.runs={tmp_path}", "--html", str(html)]
    assert cli.main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    runs = json.loads(shown.out)["runs"]
    assert [(one["id"], one["loss"], one["evaluation"], one["tokens/s"]) for one in runs] == [
        ("a", "4.1000", "4.1000", "50"), ("b", "2.3000", "2.3000", "50"),
    ]  # fmt: skip
    assert runs[0]["loss_curve"][0] == [1, 4.9] and runs[1]["time"] == "120 s"
    table = shown.err[shown.err.rindex("state") :]
    assert re.search(r"optimizer.lr +0.001 +0.005", table) and "seed" not in table
    assert shown.err.count("● a  ○ b") == 2
    text = html.read_text()
    assert text.count("loss against step") == text.count("nats per token against step") == 1 and "optimizer.lr" in text
    assert not re.search(r"(src|href)=.http", text)
    HTMLParser().feed(text)


def test_show_takes_the_newest_run_and_says_what_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--set", f"paths.runs={tmp_path}"]
    assert cli.main(["runs", "show", *at]) == 2 and "no runs" in capsys.readouterr().err
    make(tmp_path, "only", 0.1, 1e-3)
    assert cli.main(["runs", "show", *at]) == 0
    assert (
        "only: state done 9/9, command sft, loss 4.1000" in (said := capsys.readouterr().err)
        and "evaluation NLL" in said
    )
    assert cli.main(["runs", "compare", "only", *at]) == 2 and "two runs" in capsys.readouterr().err
    assert cli.main(["runs", "show", "none", *at]) == 2 and "not a run directory" in capsys.readouterr().err


def test_resume_is_the_runs_own_configuration_and_directory(tmp_path: Path) -> None:
    run = make(tmp_path, "a", 0.1, 1e-3)
    args = cli.parser("sft").parse_args(["sft", "--resume", str(run), "--set", "train.steps=20"])
    commands.resumed(args)
    assert (args.config, args.run_dir) == (run / "config.json", run)
    assert args.set == ["train.steps=20", "train.resume=latest"]
    args = cli.parser("sft").parse_args(["sft", "--config", "c.json", "--run-dir", "x", "--resume"])
    commands.resumed(args)
    assert (args.config, args.run_dir, args.set) == (Path("c.json"), Path("x"), ["train.resume=latest"])
    with pytest.raises(HildaError, match="is a run of sft; go on with `hildanext sft --resume"):
        commands.resumed(cli.parser("rl").parse_args(["rl", "--resume", str(run)]))


def test_the_line_of_a_training_is_read_at_a_glance(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("hildanext.progress.time.monotonic", lambda: clock[0])
    with Bar("training", 400, chart=watched) as bar:
        for step in range(1, 101):
            clock[0] += 3.0
            bar.advance(1, loss=5.0 - step / 100, **{"tokens/s": 640, "block": 32})
    said = capsys.readouterr().err
    assert "training: 100/400 (25%), loss 4, tokens/s 640, block 32, 5 min 00 s, 15 min 00 s left" in said
    assert "● loss" in said and said.count("step 100") == 1
    assert [span(s) for s in (0.4, 59, 61, 3599, 7500)] == ["0 s", "59 s", "1 min 01 s", "59 min 59 s", "2 h 05 min"]
