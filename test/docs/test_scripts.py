# The scripts behind tables in docs/results.md that no other test runs: each runs, on as little as it takes.
# Entry points: pytest.
# What they print is a row or a line with figures of the model; what they write is what the model told.
"""Tests of docs/own_stories.py and docs/windows.py, and of what scripts say to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts import script

from hildanext.cli import spoken
from hildanext.measure.tasks.storyworld import Storyworld
from hildanext.world import check


def test_own_stories_are_valid_and_the_same_again(project: Path, tmp_path: Path) -> None:
    told = script(project / "docs" / "own_stories.py")
    for name in ("one.jsonl", "two.jsonl"):
        told.main([str(tmp_path / name), "--stories", "2"])
    texts = [json.loads(line)["text"] for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert len(texts) == 2 == len(set(texts)) and all(check(text).valid for text in texts)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_a_story_the_checker_refuses_is_left_out(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = script(project / "docs" / "own_stories.py")
    monkeypatch.setattr(told, "check", lambda text: check(text.partition(". ")[2]))
    told.main([str(tmp_path / "none.jsonl"), "--stories", "2"])
    assert (tmp_path / "none.jsonl").read_text() == "" and "0 of 2 stories" in capsys.readouterr().err


def test_the_table_of_windows_has_a_row_for_each_setting(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    windows = script(project / "docs" / "windows.py")
    windows.main(["--stories", "2", "--modes", "S_MODE", "--blocks", "1", "2", "--tau", "0.7"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `S_MODE`")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [cell[:4] for cell in cells] == [["`S_MODE`", "0.7", "16", blocks] for blocks in "12"]
    one, two = (float(cell[6]) for cell in cells)
    assert two > one > 2


def test_unseen_stories_have_first_sentences_of_their_own(project: Path, tmp_path: Path) -> None:
    windows = script(project / "docs" / "windows.py")
    usual = Storyworld(stories=40, answers=0).openings()
    rows = "".join(json.dumps({"text": f"{start} And so on. Twice."}) + "\n" for start in usual[::2])
    (tmp_path / "rows.jsonl").write_text(rows)
    known = windows.known_openings(tmp_path / "rows.jsonl")
    assert known == set(usual[::2])
    told = windows.Unseen(stories=40, answers=0, known=known).openings()
    assert len(set(told)) == 40 and not known & set(told)
    assert told[:10] == list(dict.fromkeys(start for start in usual if start not in known))[:10]


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("windows", ["--model", "none"], "windows.py: model.path 'none': no Hugging Face model folder there"),
        ("windows", ["--unseen", "none"], "windows.py: none: no rows with a text (FileNotFoundError)"),
        ("hybrids", ["a=b"], "hybrids.py: a=b: give NAME=PARENT_RUN,CHILD_RUN"),
        ("latents", ["x.png", "a=none"], "latents.py: none: No such file or directory; give the directory of an"),
        ("frontier", ["none.json", "x.png"], "frontier.py: none.json: no report of `hildanext demo`"),
    ],
)
def test_bad_input_of_a_script_is_one_line(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, words: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    loaded = script(project / "docs" / f"{name}.py")
    assert spoken(f"{name}.py", lambda: loaded.main(words)) == 2
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == 1
    assert f'sys.exit(spoken("{name}.py", main))' in (project / "docs" / f"{name}.py").read_text(encoding="utf-8")
