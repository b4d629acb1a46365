# Evaluation reports end to end, their comparison, and the demo's page and charts.
# Entry points: pytest.
# The page is parsed as HTML and must ask nothing of a network.
"""Tests of the reports of eval and demo."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hildanext import cli
from hildanext.errors import DataError
from hildanext.measure.comparison import read_report, side_by_side
from hildanext.report import charts
from hildanext.report.charts import Axes, Series, bars, lines
from hildanext.report.frames import frames_of
from hildanext.report.page import Section, page

TASK = '{"type": "nll", "limit": 2, "blocks": [1, 4], "samples": 2, "autoregressive": false}'


@pytest.fixture(scope="module")
def reports(story_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of `hildanext eval`, the second compared with the first."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["eval", "--quiet", "--model", str(story_model), "--set", f"eval.tasks=[{TASK}]"]
    assert cli.main([*common, "--run-dir", str(folder / "one")]) == 0
    assert cli.main([*common, "--run-dir", str(folder / "two"), "--against", str(folder / "one")]) == 0
    return [folder / "one", folder / "two"]


def test_a_run_writes_json_markdown_and_a_plot(reports: list[Path]) -> None:
    report = json.loads((reports[0] / "report.json").read_text())
    assert report["tasks"][0]["version"] == 2 and report["tasks"][0]["settings"]["samples"] == 2
    assert "| block_4 |" in (reports[0] / "report.md").read_text()
    assert (reports[0] / "plots" / "nll-bound.png").read_bytes()[:4] == b"\x89PNG"


def test_equal_runs_stand_side_by_side_with_equal_numbers(reports: list[Path]) -> None:
    report = json.loads((reports[1] / "report.json").read_text())
    rows = [row for row in report["against"] if row["measure"] == "block_4"]
    values = [found["value"] for found in rows[0]["values"].values()]
    assert len(values) == 2 and values[0] == values[1]
    assert "Side by side" in (reports[1] / "report.md").read_text()


def test_numbers_of_different_task_versions_never_share_a_line(reports: list[Path]) -> None:
    own = read_report(reports[0])
    other = json.loads(json.dumps(own)) | {"run": "other"}
    other["tasks"][0]["version"] = 1
    assert all(None in row["values"].values() for row in side_by_side(own, [other]))


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(DataError, match="not an evaluation report"):
        read_report(tmp_path)


def test_finished_tasks_are_written_before_the_next_one_runs_and_files_are_opened_before_the_first(
    story_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["eval", "--quiet", "--model", str(story_model)]
    (tmp_path / "q.jsonl").write_text('{"question": "' + "why " * 300 + '", "answer": "#### 1"}')
    late = f'{{"type": "gsm8k", "path": "{tmp_path}/q.jsonl"}}'
    assert cli.main([*start, "--set", f"eval.tasks=[{TASK}, {late}]", "--run-dir", str(tmp_path / "a")]) == 2
    assert [task["task"] for task in read_report(tmp_path / "a")["tasks"]] == ["nll"]
    assert "256 tokens" in capsys.readouterr().err
    missing = late.replace("q.jsonl", "none.jsonl")
    assert cli.main([*start, "--set", f"eval.tasks=[{TASK}, {missing}]", "--run-dir", str(tmp_path / "b")]) == 2
    assert "none.jsonl" in capsys.readouterr().err and not (tmp_path / "b").exists()


def test_columns_side_by_side_are_named_by_how_their_texts_were_made() -> None:
    decode: dict[str, Any] = {"mode": "Q_MODE", "policy": None, "tau_mask": "preset", "tau_edit": "preset", "block": 0}
    decode |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    one = {"task": "t", "version": 1, "measures": {"m": 1}}
    child = {"model": "c", "run": "r", "generator": "diffusion", "decode": decode, "tasks": [one, one]}
    edited = {**child, "decode": decode | {"tau_mask": 0.9, "tau_edit": None, "temperature": 0.5}}
    parent = {**child, "model": "p", "generator": "autoregressive"}
    rows = side_by_side(child, [edited, parent, parent])
    assert [row["task"] for row in rows] == ["t v1", "t #2 v1"]
    assert list(rows[0]["values"]) == [
        "c Q_MODE (r)", "c Q_MODE, tau_mask 0.9, tau_edit off, temperature 0.5 (r)", "p left to right (r)",
        "p left to right (r) #2",
    ]  # fmt: skip


def test_labels_of_points_side_by_side_do_not_cover_each_other() -> None:
    near = [
        {"x": 4.0 + 0.1 * i, "y": 1.0, "label": label} for i, label in enumerate(("Q_MODE", "0.7", "S_MODE", "0.9"))
    ]
    again = [{"x": 4.1, "y": 1.0, "label": "0.7"}, {"x": 1.0, "y": 0.5, "label": "AR"}]
    text = lines([Series("a", near), Series("b", again)], Axes("x", "y", percent=True, floor=0.0))
    found = re.findall(r'<text class="note" x="([\d.]+)" y="([\d.]+)">([^<]+)<', text)
    assert sorted(label for _, _, label in found) == ["0.7", "0.9", "AR", "Q_MODE", "S_MODE"]
    for index, (x, y, label) in enumerate(found):
        for other_x, other_y, other in found[index + 1 :]:
            apart = abs(float(x) - float(other_x)) >= 7 * len(label if float(x) < float(other_x) else other)
            assert apart or abs(float(y) - float(other_y)) >= 11


def _points(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"x": x, "y": y, "low": y - 0.1, "high": y + 0.1} for x, y in pairs]


@pytest.mark.parametrize("log_x", [True, False])
def test_a_chart_places_points_by_their_values(log_x: bool) -> None:
    text = lines([Series("a <b>", _points((1, 0.2), (4, 0.8)))], Axes("x", "y", log_x=log_x))
    root = ElementTree.fromstring(f"<r>{text}</r>")
    drawn = [dot for dot in root.iter("circle") if dot.find("title") is not None]
    (left, low), (right, high) = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in drawn]
    assert left < right and low > high
    assert "a &lt;b&gt;" in text


def test_labels_of_a_crowded_logarithmic_axis_stand_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = [Series("a", _points(*((1.07**index, 0.5) for index in range(60))))]

    def gaps() -> list[float]:
        text = lines(crowd, Axes("x", "y", log_x=True))
        places = sorted(
            float(x) for x in re.findall(r'class="tick" x="([0-9.]+)" y="[0-9.]+" text-anchor="middle"', text)
        )
        return [right - left for left, right in zip(places, places[1:], strict=False)]

    assert min(gaps()) >= 29.9 and len(gaps()) > 8
    monkeypatch.setattr(charts, "ROOM", 0)
    assert min(gaps()) < 10


def test_more_series_than_colours_are_told_apart() -> None:
    many = [Series(f"cell {index}", _points((1, 0.2), (2, 0.1 * index))) for index in range(9)]
    root = ElementTree.fromstring(f"<r>{lines(many, Axes('x', 'y'))}</r>")
    drawn = [group.attrib["class"] for group in root.iter("g")]
    assert drawn == [span.attrib["class"] for span in root.iter("span")] and len(set(drawn)) == 9
    classes = {name for one in drawn for name in one.split()}
    style = page("t", "", [], [], "").partition("</style>")[0]
    assert classes == {*(f"s{index}" for index in range(6)), "again"}
    assert all(re.search(rf"\.{name} ", style) for name in classes)


def test_the_longest_bar_is_the_largest_value() -> None:
    root = ElementTree.fromstring(bars([("a", 1.0), ("b", 4.0)], "tokens/s"))
    short, long = [float(bar.attrib["width"]) for bar in root.iter("rect")]
    assert long == pytest.approx(4 * short)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_no_network_and_escapes_text() -> None:
    trace = [
        {
            "start": 4,
            "tokens": [{"pos": 4, "text": "</script>", "state": "new"}, {"pos": 5, "text": "", "state": "mask"}],
        },
        {"start": 6, "tokens": [{"pos": 6, "text": "b", "state": "edited"}]},
    ]
    section = Section("A <title>", "prose & more", ("a",), [("<b>",)], frames=frames_of("start", trace))
    text = page("T", "lead", [("5", "facts")], [section, Section("Not here", "", skipped="no model")], "end")
    links = _Links()
    links.feed(text)
    assert not links.found and "http" not in text.replace("http-equiv", "")
    assert "A &lt;title&gt;" in text and "&lt;b&gt;" in text and "Not run: no model" in text
    assert text.count("</script>") == 2


def test_finished_blocks_stay_in_later_frames() -> None:
    trace = [
        {"start": 0, "tokens": [{"pos": 0, "text": "a", "state": "new"}]},
        {"start": 1, "tokens": [{"pos": 1, "text": "b", "state": "new"}]},
    ]
    assert frames_of("", trace)[1]["tokens"] == [["", "given"], ["a", "done"], ["b", "new"]]


def test_a_block_that_stays_open_while_the_one_before_it_is_finished_is_shown_once() -> None:
    first, second = ({"pos": pos, "text": text, "state": "new"} for pos, text in enumerate("ab"))
    trace = [{"start": 0, "tokens": [first, second]}, {"start": 1, "tokens": [second | {"state": "kept"}]}]
    assert frames_of("", trace)[1]["tokens"] == [["", "given"], ["a", "done"], ["b", "kept"]]
