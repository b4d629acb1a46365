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

from hildanext.api import job_plan, jobs
from hildanext.api.worker import opened
from hildanext.command_files import job_kinds
from hildanext.config.root import fields_at
from hildanext.decoding.request import Request

PLANNER = Path(__file__).with_name("stub_planner.py")
REASONS = ("dinfer: no CUDA device", "dinfer: no vllm", "transformers: no model folder")
pytestmark = pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="Chromium is not installed (apt-get install chromium-driver)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    before = jobs.LAUNCHER, job_plan.PROGRAM
    jobs.LAUNCHER, job_plan.PROGRAM = (sys.executable, str(STUB)), (sys.executable, str(PLANNER))
    config = config_in(tmp_path_factory.mktemp("project"))
    opener = opened(ScriptedSession(seconds=0.03), REASONS)
    with live_server(config, opener=opener) as (url, _), browser() as found:
        wait_ready(url)
        found.go(url)
        found.wait("document.querySelectorAll('input[name=mode]').length")
        yield found
    jobs.LAUNCHER, job_plan.PROGRAM = before


def shot(page: Browser, name: str) -> None:
    if folder := os.environ.get("HILDANEXT_SHOTS"):
        page.shot(Path(folder) / f"{name}.png")


def test_masks_disappear_and_the_committed_text_is_the_answer(page: Browser) -> None:
    page.type("#prompt", "a browser")
    page.run("document.getElementById('length').value = 48")
    seen = ("#canvas .cell.mask", "#canvas .cell.later", "#canvas .cell.new")
    page.watch(*seen)
    page.click("#go")
    page.wait("window.most['#canvas .cell.new']")
    shot(page, "generating")
    page.wait("document.getElementById('n-end').textContent === 'length'")
    page.wait("!document.querySelectorAll('#canvas .cell').length")
    assert min(page.most(name) for name in seen) > 0
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
    page.wait("document.getElementById('scrub').value === document.getElementById('scrub').max")


def test_stop_ends_a_long_generation(page: Browser) -> None:
    page.run("document.getElementById('length').value = 2000")
    page.watch("#canvas .cell.new")
    page.click("#go")
    page.wait("window.most['#canvas .cell.new']")
    page.click("#stop")
    page.wait("!document.getElementById('go').disabled && document.getElementById('n-end').textContent === 'you'")
    assert page.run("return document.getElementById('go').disabled") is False


def test_an_error_is_shown_in_words(page: Browser) -> None:
    page.type("#prompt", "refuse")
    page.click("#go")
    assert "refused" in page.wait("document.getElementById('problem').textContent")


def test_after_a_refusal_nothing_of_the_run_before_is_left(page: Browser) -> None:
    page.run("document.getElementById('length').value = 8")
    page.type("#prompt", "a browser")
    page.click("#go")
    page.wait("document.getElementById('n-end').textContent === 'length'")
    assert "Engine scripted" in page.run("return document.getElementById('engine-line').textContent")
    page.type("#prompt", "refuse")
    page.click("#go")
    page.wait("!document.getElementById('problem').hidden")
    left = "['engine-line', 'n-tokens', 'n-end', 'step'].map(id => document.getElementById(id).textContent)"
    assert page.run(f"return {left}") == ["", "–", "–", "step 0"]
    assert page.run("return document.getElementById('reasons').hidden") is True


def test_the_keyboard_moves_between_tabs(page: Browser) -> None:
    page.run("document.getElementById('tab-write').focus()")
    for key, tab in (("ArrowRight", "chat"), ("ArrowLeft", "write"), ("ArrowLeft", "training")):
        page.run(
            "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))",
            key,
        )
        assert page.run("return document.activeElement.id") == f"tab-{tab}"
    assert page.run("return document.getElementById('view-training').hidden") is False


def test_a_job_is_started_watched_and_cancelled(page: Browser) -> None:
    page.click("#tab-training")
    page.wait("document.getElementById('job-command').options.length")
    choose(page, "convert-wsd")
    page.type("#job-set", "description=sleep")
    page.click("#job-form .primary")
    page.wait("document.querySelector('.badge.running')")
    page.wait("document.querySelectorAll('.loss polyline').length > 1")
    names = page.run("return [...document.querySelectorAll('.curve figcaption span')].map(c => c.textContent)")
    assert names == ["loss", "reward", "reward spread"]
    page.wait("document.querySelector('.job details:not([hidden])')")
    page.run("document.querySelectorAll('.job details')[0].open = true")
    page.wait("document.querySelector('.job tr[aria-current=step]')")
    page.run("document.querySelectorAll('.job details')[1].open = true")
    page.run("document.querySelectorAll('.job details')[2].open = true")
    page.wait("document.querySelector('.job pre').textContent.includes('step 1')")
    page.run("document.querySelector('.job .panels').open = true")
    page.wait("document.querySelector('.job .panels img')?.naturalWidth === 1")
    shot(page, "job")
    page.click(".job .buttons button")
    page.wait("document.querySelector('.badge.cancelled')")
    assert page.run("return document.querySelectorAll('.badge.running').length") == 0


def choose(page: Browser, command: str) -> None:
    page.run(
        "const s = document.getElementById('job-command'); s.value = arguments[0];"
        " s.dispatchEvent(new Event('change'))",
        command,
    )


def test_the_job_form_is_made_of_the_kinds_the_server_lists(page: Browser) -> None:
    page.click("#tab-training")
    page.wait("document.getElementById('job-command').options.length")
    listed = page.run("return [...document.getElementById('job-command').options].map(option => option.value)")
    assert listed == list(job_kinds())
    for command in ("merge-checkpoints", "rl", "convert-wsd"):
        choose(page, command)
        assert page.run("return document.getElementById('job-help').textContent") == job_kinds()[command].help
        places = page.run("return [...document.querySelectorAll('[data-place]')].map(one => one.dataset.place)")
        assert sorted(places) == sorted(field.place for field in fields_at(job_kinds()[command].job))


def test_a_value_has_the_control_and_the_limits_of_its_schema(page: Browser) -> None:
    choose(page, "convert-wsd")
    of = "const at = place => document.querySelector(`[data-place='${place}']`);"
    assert page.run(f"{of} const i = at('train.steps'); return [i.type, i.min, i.step]") == ["number", "1", "1"]
    assert page.run(f"{of} const i = at('train.shorten'); return [i.min, i.max, i.step]") == ["0", "1", "any"]
    kinds = page.run(f"{of} return [...at('train.autocast').options].map(option => option.text)")
    assert kinds == ["none", "bfloat16"]
    assert page.run(f"{of} return at('train.parallel').type") == "text"
    assert page.run(f"{of} return at('train.prepare').value") == "false"


def test_only_what_was_changed_is_sent_and_the_defaults_again_are_not(page: Browser) -> None:
    set_ = (
        "const i = document.querySelector(`[data-place='${arguments[0]}']`); i.value = arguments[1];"
        " i.dispatchEvent(new Event('input')); i.dispatchEvent(new Event('change'))"
    )
    changed = "return document.getElementById('job-changed').textContent"
    page.run(set_, "train.steps", "7")
    page.run(set_, "train.split", 'a"b')
    page.run(set_, "train.prepare", "true")
    assert page.run(changed) == 'Changed: train.steps=7, train.split="a\\"b", train.prepare=true'
    page.run(set_, "train.steps", "1000")
    page.run(set_, "train.split", "")
    page.run(set_, "train.prepare", "false")
    assert page.run(changed) == "Nothing is changed."


def test_settings_are_found_by_their_words(page: Browser) -> None:
    page.type("#job-find", "optimiser steps")
    shown = page.run("return [...document.querySelectorAll('.job-field:not([hidden])')].map(f => f.dataset.words)")
    assert shown and all("optimiser" in words and "steps" in words for words in shown)
    page.run("const f = document.getElementById('job-find'); f.value = ''; f.dispatchEvent(new Event('input'))")


def test_the_plan_is_shown_before_anything_is_started(page: Browser) -> None:
    choose(page, "merge-checkpoints")
    assert page.run("return document.getElementById('job-plan').hidden") is True
    choose(page, "convert-wsd")
    page.run("document.getElementById('job-set').value = 'train.steps=30'")
    page.click("#job-plan")
    page.wait("document.querySelectorAll('#plan tbody tr').length")
    cells = page.run("return [...document.querySelectorAll('#plan tbody tr:last-child td')].map(c => c.textContent)")
    assert cells == ["stable", "16", "10", "20", "1,280", "2.0"]
    assert "30 steps of 64 tokens" in page.run("return document.getElementById('plan').textContent")
    shot(page, "plan")


def test_what_the_server_refused_of_a_job_stays_to_be_read(page: Browser) -> None:
    page.run("document.getElementById('job-set').value = 'train.nonsense=1'")
    page.click("#job-form .primary")
    page.wait("document.getElementById('job-problem').textContent.includes('nonsense')")
    page.run(
        "window.polls = 0; const f = window.fetch; window.fetch = (...a) => { window.polls += 1; return f(...a); }"
    )
    page.wait("window.polls > 1")
    assert "nonsense" in page.run("return document.getElementById('job-problem').textContent")


def test_a_run_is_deleted_by_the_second_click_only(page: Browser) -> None:
    between = page.run(
        "const b = document.querySelectorAll('.job .buttons button')[1]; b.click(); const asked = b.textContent;"
        " const jobs = document.querySelectorAll('.job').length; b.click(); return [asked, jobs]"
    )
    assert between == ["Delete for good?", 1]
    page.wait("!document.querySelectorAll('.job').length")


def test_the_reasons_of_a_fallback_are_listed_under_the_engines_name(page: Browser) -> None:
    page.click("#tab-write")
    page.run("document.getElementById('length').value = 8")
    page.type("#prompt", "a browser")
    page.click("#go")
    page.wait("document.getElementById('n-end').textContent === 'length'")
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
