# The page in a real browser: generate, watch masks go, replay, start and cancel a job, with no error on its console.
# Entry points: pytest; skipped where Chromium is not installed.
# HILDANEXT_SHOTS names a folder for screenshots to look at.
"""The page."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from api.browser import Browser, browser
from api.live import config_in, live_server, wait_ready
from api.scripted import ScriptedSession, story
from api.test_jobs import STUB

from hildanext.api import jobs
from hildanext.api.worker import opened
from hildanext.command_files import job_kinds
from hildanext.decoding.request import Request

REASONS = ("dinfer: no CUDA device", "dinfer: no vllm", "transformers: no model folder")
pytestmark = pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="Chromium is not installed (apt-get install chromium-driver)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    before, jobs.LAUNCHER = jobs.LAUNCHER, (sys.executable, str(STUB))
    config = config_in(tmp_path_factory.mktemp("project"))
    opener = opened(ScriptedSession(seconds=0.03), REASONS)
    with live_server(config, opener=opener) as (url, _), browser() as found:
        wait_ready(url)
        found.go(url)
        found.wait("document.querySelectorAll('input[name=mode]').length")
        yield found
    jobs.LAUNCHER = before


def shot(page: Browser, name: str) -> None:
    if folder := os.environ.get("HILDANEXT_SHOTS"):
        page.shot(Path(folder) / f"{name}.png")


def test_masks_disappear_and_the_committed_text_is_the_answer(page: Browser) -> None:
    page.type("#prompt", "a browser")
    page.run("document.getElementById('length').value = 48")
    page.click("#go")
    page.wait("document.querySelectorAll('#canvas .cell.mask').length && document.querySelectorAll('.cell.new').length")
    many = page.run("return document.querySelectorAll('#canvas .cell.later, #canvas .cell.mask').length")
    shot(page, "generating")
    page.wait("document.getElementById('n-end').textContent === 'length'", 30)
    page.wait("!document.querySelectorAll('#canvas .cell').length", 30)
    assert many > 0
    text = page.run("return document.getElementById('canvas').textContent")
    assert text == "a browser" + "".join(
        story(Request.of(prompt="a browser", max_new_tokens=48, mode="Q_MODE", seed=0))
    )
    assert page.run("return document.getElementById('n-tokens').textContent") == "48"
    shot(page, "done")


def test_the_scrubber_goes_back_to_masks(page: Browser) -> None:
    page.run("const s = document.getElementById('scrub'); s.value = 3; s.dispatchEvent(new Event('input'))")
    assert page.run("return document.querySelectorAll('#canvas .cell.mask').length") > 0
    assert page.run("return document.getElementById('step').textContent").startswith("step 3 of")
    assert page.run("return document.getElementById('n-forwards').textContent") == "3"
    assert page.run("return document.getElementById('n-tokens').textContent") == "0"
    shot(page, "scrubbed")
    page.click("#play")
    page.wait("document.getElementById('scrub').value === document.getElementById('scrub').max", 30)


def test_stop_ends_a_long_generation(page: Browser) -> None:
    page.run("document.getElementById('length').value = 500")
    page.click("#go")
    page.wait("document.querySelectorAll('#canvas .cell.new').length")
    page.click("#stop")
    page.wait("!document.getElementById('go').disabled && document.getElementById('n-end').textContent === 'you'", 30)
    assert page.run("return document.getElementById('go').disabled") is False


def test_an_error_is_shown_in_words(page: Browser) -> None:
    page.type("#prompt", "refuse")
    page.click("#go")
    assert "refused" in page.wait("document.getElementById('problem').textContent")


def test_after_a_refusal_nothing_of_the_run_before_is_left(page: Browser) -> None:
    page.run("document.getElementById('length').value = 8")
    page.type("#prompt", "a browser")
    page.click("#go")
    page.wait("document.getElementById('n-end').textContent === 'length'", 30)
    assert "Engine scripted" in page.run("return document.getElementById('engine-line').textContent")
    page.type("#prompt", "refuse")
    page.click("#go")
    page.wait("!document.getElementById('problem').hidden")
    left = "['engine-line', 'n-tokens', 'n-end', 'step'].map(id => document.getElementById(id).textContent)"
    assert page.run(f"return {left}") == ["", "–", "–", "step 0"]
    assert page.run("return document.getElementById('reasons').hidden") is True


def test_the_keyboard_moves_between_tabs(page: Browser) -> None:
    page.run("document.getElementById('tab-generate').focus()")
    page.run("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))")
    assert page.run("return document.activeElement.id") == "tab-jobs"
    assert page.run("return document.getElementById('view-jobs').hidden") is False


def test_a_job_is_started_watched_and_cancelled(page: Browser) -> None:
    page.click("#tab-jobs")
    page.wait("document.getElementById('job-command').options.length")
    page.run("document.getElementById('job-command').value = 'convert-wsd'")
    page.type("#job-set", "description=sleep")
    page.click("#job-form .primary")
    page.wait("document.querySelector('.badge.running')", 30)
    page.wait("document.querySelector('.loss polyline')", 30)
    page.click(".job summary")
    page.wait("document.querySelector('.job pre').textContent.includes('step 1')", 30)
    page.run("document.querySelector('.job .panels').open = true")
    page.wait("document.querySelector('.job .panels img')?.naturalWidth === 1", 30)
    shot(page, "job")
    page.click(".job .buttons button")
    page.wait("document.querySelector('.badge.cancelled')", 30)
    assert page.run("return document.querySelectorAll('.badge.running').length") == 0


def test_the_job_form_is_made_of_the_kinds_the_server_lists(page: Browser) -> None:
    page.click("#tab-jobs")
    page.wait("document.getElementById('job-command').options.length")
    listed = page.run("return [...document.getElementById('job-command').options].map(option => option.value)")
    assert listed == list(job_kinds())
    page.run(
        "const s = document.getElementById('job-command'); s.value = 'merge-checkpoints';"
        " s.dispatchEvent(new Event('change'))"
    )
    assert page.run("return document.getElementById('job-help').textContent") == job_kinds()["merge-checkpoints"].help
    page.run("document.getElementById('job-set').value = 'seed=3'")
    page.run("[...document.querySelectorAll('#job-fields button')].find(b => b.textContent === 'merge.best').click()")
    assert page.run("return document.getElementById('job-set').value") == "seed=3\nmerge.best=3"


def test_what_the_server_refused_of_a_job_stays_to_be_read(page: Browser) -> None:
    page.run("document.getElementById('job-set').value = 'train.nonsense=1'")
    page.click("#job-form .primary")
    page.wait("document.getElementById('job-problem').textContent.includes('nonsense')")
    page.run(
        "window.polls = 0; const f = window.fetch; window.fetch = (...a) => { window.polls += 1; return f(...a); }"
    )
    page.wait("window.polls > 1", 30)
    assert "nonsense" in page.run("return document.getElementById('job-problem').textContent")


def test_a_run_is_deleted_by_the_second_click_only(page: Browser) -> None:
    page.run("const b = document.querySelectorAll('.job .buttons button')[1]; b.click()")
    assert page.run("return document.querySelectorAll('.job .buttons button')[1].textContent") == "Delete for good?"
    assert page.run("return document.querySelectorAll('.job').length") == 1
    page.run("const b = document.querySelectorAll('.job .buttons button')[1]; b.click()")
    page.wait("!document.querySelectorAll('.job').length", 30)


def test_the_reasons_of_a_fallback_are_listed_under_the_engines_name(page: Browser) -> None:
    page.click("#tab-generate")
    page.run("document.getElementById('length').value = 8")
    page.type("#prompt", "a browser")
    page.click("#go")
    page.wait("document.getElementById('n-end').textContent === 'length'", 30)
    assert page.run("return document.getElementById('reasons-names').textContent") == "Not used: dinfer, transformers"
    listed = page.run("return [...document.querySelectorAll('#reasons-list li')].map(line => line.textContent)")
    assert listed == list(REASONS)


def test_every_control_has_a_name_and_nothing_was_blocked(page: Browser) -> None:
    nameless = page.run(
        "return [...document.querySelectorAll('button, input, select, textarea')].filter(e => !(e.labels?.length ||"
        " e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.outerHTML)"
    )
    assert nameless == []
    errors = [line for line in page.console() if "Content Security Policy" in line or "Uncaught" in line]
    assert errors == []
