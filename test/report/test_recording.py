# A recording as files: as many frames as steps, nothing loaded from anywhere, no text that becomes markup.
# Entry points: pytest. The player itself is driven in a browser by test/api/test_player.py.
# Frames are counted by Pillow and by an XML parser, not by the code that wrote them.
"""Pictures of decoding."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import hildanext
from hildanext.cli import main
from hildanext.decoding.wire import broken, entries_of
from hildanext.errors import DataError, DecodeError
from hildanext.report import gif, recording
from hildanext.report.animation import COLUMNS, seconds_of
from hildanext.report.recording import Recording, suffix_of

NASTY = '</script><script>window.owned=1</script><img src=x onerror="window.owned=1">&\x00'


@pytest.fixture(scope="module")
def answer() -> Any:
    return hildanext.load("tiny").generate("One day", mode="S_MODE", max_new_tokens=60, trace=True)


def nasty() -> Recording:
    token = {"pos": 3, "id": 5, "text": NASTY, "state": "new"}
    events = (
        {"kind": "begin", "format": "block-diffusion-events", "version": 1, "prompt": NASTY},
        {"kind": "draft", "step": 1, "tokens": [token]},
        {"kind": "commit", "text": NASTY, "token_ids": [5]},
        {"kind": "done", "text": NASTY, "token_ids": [5], "finish_reason": "length"},
    )
    return Recording(events, NASTY)


def test_a_gif_has_a_frame_per_step_and_one_of_the_text(answer: Any) -> None:
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    picture = Image.open(io.BytesIO(answer.animation().gif()))
    assert picture.n_frames == answer.metrics.steps + 1 and picture.info["loop"] == 0
    durations = []
    for frame in range(picture.n_frames):
        picture.seek(frame)
        durations.append(picture.info["duration"])
    assert durations == [350] * answer.metrics.steps + [3000]


def test_gif_frames_of_equal_canvases_are_kept(answer: Any) -> None:
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    frames = [{"step": step, "tokens": [["a", "kept"]]} for step in (1, 2, 3)]
    assert Image.open(io.BytesIO(gif.draw(frames, "same"))).n_frames == 3


def test_an_svg_has_a_group_per_step_and_one_of_the_text(answer: Any) -> None:
    drawn = ElementTree.fromstring(answer.animation().svg())
    assert len(drawn.findall("{http://www.w3.org/2000/svg}g")) == answer.metrics.steps + 1


def test_the_player_holds_every_event_and_loads_nothing(answer: Any) -> None:
    page = answer.animation("A <title>").html()
    held = re.findall(r'<script type="application/json" id="events">(.*?)</script>', page, re.S)
    entries = json.loads(held[0])
    assert broken(entries) == [] and sum(one["kind"] == "draft" for one in entries) == answer.metrics.steps
    bare = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[\w.]+/|@import|url\(|(?:src|href)=|\bimport\b.*from|fetch\(", bare)
    assert "default-src 'none'" in page and "<title>A &lt;title&gt;</title>" in page and "{{" not in page


def test_text_never_becomes_markup() -> None:
    page, drawn = nasty().html(), nasty().svg()
    assert "<script>window" not in page and "<img" not in page and page.count("</script>") == 2
    texts = "".join(ElementTree.fromstring(drawn).itertext())
    assert "<img src=x" in texts and "\x00" not in drawn


def test_a_trace_gives_the_events_a_stream_gives(answer: Any) -> None:
    entries = answer.animation().entries
    assert broken(entries) == [] and sum(one["kind"] == "commit" for one in entries) > 2
    assert "".join(one["text"] for one in entries if one["kind"] == "commit") == answer.text


def test_the_last_frame_is_the_text_and_what_follows_the_end_is_dropped() -> None:
    model = hildanext.load("tiny")
    said = model.generate(
        [{"role": "user", "content": "Write a story about Lily and a fox."}], trace=True, max_new_tokens=400
    )
    assert said.finish_reason == "eos"
    last = said.animation().frames()[-1]["tokens"]
    assert last == [["", "given"], [said.text, "done"]]


def test_a_result_without_a_trace_says_how_to_get_one() -> None:
    with pytest.raises(DecodeError, match="trace=True"):
        hildanext.load("tiny").generate("One day", max_new_tokens=4).animation()


def test_an_answer_is_a_result_and_its_values_are_the_results(answer: Any) -> None:
    assert "prompt" not in answer.as_dict() and answer.prompt == "One day"
    assert answer.animation()._repr_html_().startswith("<iframe srcdoc=")


def test_long_generations_are_shown_faster() -> None:
    assert seconds_of(10) == 0.35 and seconds_of(200) == pytest.approx(0.14) and seconds_of(10_000) == 0.04


@pytest.mark.parametrize(
    ("name", "words"), [("a.png", "ends in .png"), ("a", "ends in nothing"), ("none/a.svg", "existing folder")]
)
def test_a_wrong_name_is_told_before_anything_is_loaded(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("hildanext.engines.opening.open_engine", lambda **_: pytest.fail("loaded"))
    assert main(["generate", "--prompt", "x", "--save", str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gif, "find_spec", lambda name: None)
    with pytest.raises(DecodeError, match=r"GIF needs Pillow and matplotlib; pip install 'hildanext\[plots\]'"):
        suffix_of(Path("a.gif"))
    assert suffix_of(Path("a.SVG")) == ".svg"


def test_a_gif_that_would_fill_the_memory_is_refused() -> None:
    pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    frames = [{"step": 1, "tokens": [["word " * 20 * COLUMNS, "done"]]}] * 201
    with pytest.raises(DecodeError, match="too large"):
        gif.draw(frames, "x")


def test_a_file_of_events_is_drawn_and_a_broken_one_is_refused(answer: Any, tmp_path: Path, capsys: Any) -> None:
    source, target = tmp_path / "a.jsonl", tmp_path / "a.svg"
    source.write_bytes(answer.animation().as_file(".jsonl"))
    recording.main(source, target)
    assert target.read_text().startswith("<svg") and str(target) in capsys.readouterr().out
    source.write_text("".join(json.dumps(one) + "\n" for one in entries_of(source.read_text())[:-1]))
    with pytest.raises(DataError, match="no done or error"):
        recording.main(source, target)


def test_saving_changes_no_text(tmp_path: Path, capsys: Any) -> None:
    asked = ["generate", "--prompt", "Tom had", "--max-new-tokens", "24", "--quiet"]
    assert main(asked) == 0
    plain = capsys.readouterr().out
    assert main([*asked, "--save", str(tmp_path / "a.html")]) == 0
    assert capsys.readouterr().out == plain
