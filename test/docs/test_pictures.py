# The pictures of the documentation are what the code draws today, and the animation shows every token it was given.
# Entry points: pytest.
# Redraw with `python docs/drawings.py`.
"""Tests of docs/drawings.py and of the terminal animation."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scripts import script

from hildanext.report import animation


def test_the_committed_drawings_are_the_ones_the_code_draws(project: Path) -> None:
    for name, text in script(project / "docs" / "drawings.py").draw().items():
        assert (project / "docs" / "images" / name).read_text(encoding="utf-8") == text, f"redraw {name}"
        ElementTree.fromstring(text)


def test_the_animation_is_well_formed_and_shows_every_word_once_per_frame() -> None:
    frames = [
        {"step": 1, "tokens": [["Tom", "given"], [" ran", "new"], ["", "mask"]]},
        {"step": 2, "tokens": [["Tom", "given"], [" ran", "kept"], [" <home>", "edited"]]},
    ]
    text = animation.animate(frames, "hildanext generate")
    ElementTree.fromstring(text)
    assert text.count(">Tom<") == 2 and text.count("&lt;home&gt;") == 1 and len(re.findall("<animate ", text)) == 2


def test_an_end_is_one_mark_and_the_last_frame_is_the_text_alone() -> None:
    frames = [
        {"step": 1, "tokens": [["Ask", "given"], [" hi", "kept"], ["<|im_end|>", "new"], ["", "mask"]]},
        {"step": 2, "tokens": [["Ask", "given"], [" hi", "kept"], ["<|im_end|>", "kept"], ["<|im_end|>", "new"]]},
    ]
    first, second, last = (one["tokens"] for one in animation.ended(frames))
    assert first == [["Ask", "given"], [" hi", "kept"], [animation.MARK, "new"], ["", "mask"]]
    assert second == [["Ask", "given"], [" hi", "kept"], [animation.MARK, "kept"]]
    assert last == [["Ask", "given"], [" hi", "done"]]


def test_long_text_wraps_within_the_terminal() -> None:
    pieces = animation.layout([[" word", "done"]] * 60)
    assert max(column + len(text) for _, column, text, _ in pieces) <= animation.COLUMNS
    assert "".join(text for *_, text, _ in pieces).count("word") == 60


def test_an_animation_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="no frames"):
        animation.animate([], "x")


def test_every_local_link_of_the_guides_leads_somewhere(project: Path) -> None:
    missing = []
    for page in (project / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert not missing
