# The page that fills a gap, in a real browser over the bundled model: select, regenerate, undo, what is refused.
# Entry points: pytest; skipped where Chromium is not installed.
# The story world says whether the regenerated text is a story; HILDANEXT_SHOTS names a folder for screenshots.
"""The fill page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from api.browser import Browser, browser
from api.live import config_in, live_server, wait_ready

from hildanext.world import check, story

pytestmark = pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="Chromium is not installed (apt-get install chromium-driver)"
)
TOLD = story("9:1")
GONE = TOLD.sentences[3]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    config = config_in(tmp_path_factory.mktemp("project"), engines=[{"type": "tiny"}])
    with live_server(config) as (url, _), browser(1360, 820) as found:
        wait_ready(url)
        found.go(f"{url}/fill")
        found.wait("document.getElementById('model').options.length")
        yield found


def shot(page: Browser, name: str) -> None:
    if folder := os.environ.get("HILDANEXT_SHOTS"):
        page.shot(Path(folder) / f"{name}.png")


def write(page: Browser, text: str, piece: str) -> None:
    page.run(
        "const t = document.getElementById('text'); t.value = arguments[0]; t.focus();"
        " t.setSelectionRange(arguments[1], arguments[2]); t.dispatchEvent(new Event('select'))",
        text, text.index(piece), text.index(piece) + len(piece),
    )  # fmt: skip


def value(page: Browser, name: str) -> str:
    return str(page.run(f"const e = document.getElementById('{name}'); return e.value ?? e.textContent"))


def test_a_selected_sentence_is_written_anew_and_still_fits(page: Browser) -> None:
    write(page, TOLD.text, GONE)
    assert f"{len(GONE)} letters" in value(page, "selected")
    page.run("document.getElementById('tokens').value = 10")
    page.click("#go")
    page.wait("document.getElementById('n-tokens').textContent !== '–'")
    text = value(page, "text")
    assert text.startswith(" ".join(TOLD.sentences[:3])) and text.endswith(" ".join(TOLD.sentences[4:]))
    assert check(text).valid and value(page, "n-tokens") == "9" and value(page, "n-tried") == "10"
    picked = page.run(
        "const t = document.getElementById('text'); return t.value.slice(t.selectionStart, t.selectionEnd)"
    )
    assert TOLD.world.colour in picked and value(page, "canvas") == picked
    shot(page, "fill-chosen")


def test_undo_brings_the_text_back(page: Browser) -> None:
    page.click("#undo")
    assert value(page, "text") == TOLD.text and page.run("return document.getElementById('undo').disabled") is True


def test_a_told_length_fills_in_step_by_step(page: Browser) -> None:
    write(page, TOLD.text, GONE)
    page.run("document.querySelector('input[value=told]').click(); document.getElementById('tokens').value = 9")
    page.watch("#canvas .cell.mask")
    page.click("#go")
    page.wait("document.getElementById('n-tokens').textContent === '9'")
    assert page.most("#canvas .cell.mask") > 0 and value(page, "n-tried") == "1"
    assert check(value(page, "text")).valid and "Tokens" in value(page, "tokens-label")
    shot(page, "fill-told")


def test_without_text_behind_it_is_said_what_to_do(page: Browser) -> None:
    write(page, "One day a fox", "fox")
    page.click("#go")
    assert "Leave text behind it" in page.wait("document.getElementById('problem').textContent")
    assert value(page, "text") == "One day a fox"


def test_every_control_has_a_name_and_nothing_was_blocked(page: Browser) -> None:
    nameless = page.run(
        "return [...document.querySelectorAll('button, input, select, textarea')].filter(e => !(e.labels?.length ||"
        " e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.outerHTML)"
    )
    assert nameless == []
    assert [line for line in page.console() if "Content Security Policy" in line or "Uncaught" in line] == []
