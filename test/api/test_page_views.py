# The page's other views in a real browser: conversations, comparing, the model's card, saving, a saved player, a phone.
# Entry points: pytest; skipped where Chromium is not installed.
# The scripted session's answers are recomputed with story(); HILDANEXT_SHOTS names a folder for screenshots.
"""Views of the page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api.browser import Browser, browser
from api.live import config_in, live_server, wait_ready
from api.scripted import ScriptedSession, story

from hildanext.decoding.request import Request
from hildanext.decoding.wire import broken, entries_of
from hildanext.report.recording import Recording

pytestmark = pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="Chromium is not installed (apt-get install chromium-driver)"
)
MARKUP = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>'
TABS = ("write", "chat", "compare", "training")
READY = "!document.getElementById('send').disabled"


@pytest.fixture(scope="module")
def session() -> ScriptedSession:
    return ScriptedSession(seconds=0.02)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, session: ScriptedSession) -> Iterator[str]:
    with live_server(config_in(tmp_path_factory.mktemp("project")), session) as (url, _):
        wait_ready(url)
        yield url


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Browser]:
    with browser() as found:
        found.go(address)
        found.wait("document.querySelectorAll('input[name=mode]').length")
        found.run("document.getElementById('chat-length').value = 16")
        yield found


def texts(page: Browser, selector: str) -> list[str]:
    found = page.run("return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)", selector)
    return [str(text) for text in found]


def say(page: Browser, text: str) -> None:
    page.type("#say", text)
    page.click("#send")
    page.wait(READY)


def answer(messages: list[dict[str, str]]) -> str:
    """What the scripted session says to a chat, without sampling."""
    said = story(Request.of(messages=tuple(messages), max_new_tokens=16, mode="Q_MODE"))
    return "".join(said)


def button(page: Browser, name: str) -> None:
    page.run(
        "[...document.querySelectorAll('.turn-tools button')].filter(b => b.textContent === arguments[0])"
        ".at(-1).click()",
        name,
    )


def test_a_conversation_sends_its_history_and_its_system_prompt(page: Browser) -> None:
    page.click("#tab-chat")
    page.run("const s = document.getElementById('system'); s.value = 'Be brief.'; s.dispatchEvent(new Event('change'))")
    say(page, "one")
    system, first = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}
    page.wait("document.querySelector('.turn.assistant .canvas') && !document.querySelector('.turn .cell')")
    assert texts(page, ".turn.assistant .canvas") == [answer([system, first])]
    say(page, "two")
    page.wait("!document.querySelector('.turn .cell')")
    history = [system, first, {"role": "assistant", "content": answer([system, first])}]
    assert texts(page, ".turn.assistant .canvas")[1] == answer([*history, {"role": "user", "content": "two"}])


def test_the_keys_send_and_a_new_line_does_not(page: Browser) -> None:
    page.run("document.getElementById('say').value = 'three'")
    press = "document.getElementById('say').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', shiftKey: %s}))"
    page.run(press % "true")
    assert len(texts(page, ".turn.user")) == 2
    page.run(press % "false")
    page.wait(READY)
    assert texts(page, ".turn.user .text")[-1] == "three"


def test_regenerate_draws_another_text_and_says_with_which_seed(page: Browser, session: ScriptedSession) -> None:
    page.wait("!document.querySelector('.turn .cell')")
    before = texts(page, ".turn.assistant .canvas")[-1]
    button(page, "Regenerate")
    page.wait(f"{READY} && !document.querySelector('.turn .cell')")
    after, figures = texts(page, ".turn.assistant .canvas"), texts(page, ".turn-tools .figures")[-1]
    assert len(after) == 3 and after[-1] != before and "temperature 0.8" in figures


def test_the_steps_of_an_answer_are_there_to_be_looked_at(page: Browser) -> None:
    button(page, "Steps")
    last = "[...document.querySelectorAll('.turn.assistant')].at(-1)"
    assert page.run(f"return getComputedStyle({last}.querySelector('.replay')).display") == "flex"
    page.run(f"const s = {last}.querySelector('[data-part=scrub]'); s.value = 2; s.dispatchEvent(new Event('input'))")
    assert page.run(f"return {last}.querySelectorAll('.cell.mask').length") > 0
    assert page.run(f"return {last}.querySelector('.canvas').getAttribute('aria-hidden')") == "true"
    page.run(f"{last}.querySelector('[data-part=map]').click()")
    assert page.run(f"return {last}.querySelectorAll('.cell.mapped').length") == 16
    assert page.run(f"return {last}.querySelector('.canvas').getAttribute('aria-hidden')") == "false"


def test_stop_keeps_what_was_committed(page: Browser) -> None:
    page.run("document.getElementById('chat-length').value = 2000")
    page.type("#say", "long")
    page.click("#send")
    page.wait("[...document.querySelectorAll('.turn.assistant')].at(-1).querySelectorAll('.cell.new').length")
    page.wait("[...document.querySelectorAll('.turn .canvas')].at(-1).textContent.length > 80")
    page.click("#chat-stop")
    page.wait(READY)
    kept = json.loads(page.run("return localStorage.getItem('hildanext-conversations')"))[0]["turns"][-1]
    whole = story(Request.of(messages=({"role": "user", "content": "x"},), max_new_tokens=2000))
    assert kept["role"] == "assistant" and kept["figures"] == "stopped"
    assert 0 < len(kept["content"].split()) < len(whole) and kept["content"]
    page.run("document.getElementById('chat-length').value = 16")


def test_conversations_stay_over_a_reload_and_are_deleted_by_the_second_click(page: Browser, address: str) -> None:
    page.click("#chat-new")
    say(page, "another")
    assert texts(page, "#chat-list .title") == ["another", "one"]
    page.go(f"{address}/?again#chat")
    page.wait("document.querySelectorAll('input[name=mode]').length && document.querySelectorAll('.turn').length")
    assert texts(page, "#chat-list .title") == ["another", "one"]
    page.run("document.querySelectorAll('#chat-list .title')[1].click()")
    assert texts(page, ".turn.user .text")[0] == "one"
    assert page.run("return document.getElementById('system').value") == "Be brief."
    between = page.run(
        "const gone = document.querySelectorAll('#chat-list .gone')[0]; gone.click();"
        " const left = document.querySelectorAll('#chat-list .title').length; gone.click(); return left"
    )
    assert between == 2
    assert texts(page, "#chat-list .title") == ["one"]


def test_markup_is_text_wherever_it_comes_from(page: Browser) -> None:
    page.run("document.getElementById('chat-length').value = 16")
    page.click("#chat-new")
    say(page, MARKUP)
    page.click("#tab-write")
    page.run("document.getElementById('length').value = 8")
    page.type("#prompt", MARKUP)
    page.run("document.getElementById('n-end').textContent = 'before'")
    page.click("#go")
    page.wait("document.getElementById('n-end').textContent === 'length'")
    page.wait("!document.querySelector('#canvas .cell')")
    assert page.run("return document.getElementById('canvas').textContent").startswith(MARKUP)
    assert texts(page, ".turn.user .text") == [MARKUP] and texts(page, "#chat-list .title")[0] == MARKUP[:48]
    assert page.run("return window.owned") is None
    assert page.run("return document.querySelectorAll('#main img, #main script').length") == 0


def test_two_settings_are_compared_on_one_prompt_and_seed(page: Browser) -> None:
    page.click("#tab-compare")
    page.run("for (const s of ['a', 'b']) document.getElementById(`compare-${s}-length`).value = 16")
    page.type("#compare-prompt", "a fox")
    page.type("#compare-seed", "7")
    page.click("#compare-go")
    page.wait("document.getElementById('compare-spoken').textContent.startsWith('Done')")
    page.wait("!document.querySelector('#sides .cell')")
    asked = [Request.of(prompt="a fox", max_new_tokens=16, mode=mode, seed=7) for mode in ("S_MODE", "Q_MODE")]
    assert texts(page, "#sides .canvas") == ["a fox" + "".join(story(request)) for request in asked]
    rows = page.run(
        "return Object.fromEntries([...document.querySelectorAll('#compare-table tbody tr')].map(row =>"
        " [row.cells[0].textContent, [...row.cells].slice(1).map(cell => cell.textContent)]))"
    )
    assert rows["Mode"] == ["Speed", "Quality"] and rows["Tokens"] == ["16", "16"] and rows["Forwards"] == ["8", "8"]
    assert rows["Tokens per second"] == ["1600", "1600"] and rows["Seed"] == ["7", "7"]
    assert re.fullmatch(r"the same|they part after \d+ words", rows["Texts"][0])


def test_the_card_says_what_is_loaded(page: Browser) -> None:
    page.click("#status")
    card = texts(page, "#model-body")[0]
    assert "scripted" in texts(page, "#model-title")[0] and "no weights" in card and "4096 tokens" in card
    page.click("#model-close")
    assert page.run("return document.getElementById('model-card').open") is False


@pytest.fixture(scope="module")
def kept(page: Browser) -> dict[str, str]:
    """What the menu saves of one generation, by suffix."""
    page.click("#tab-write")
    page.run("document.getElementById('length').value = 40")
    page.type("#prompt", "a fox </script><b>")
    page.run("document.getElementById('n-end').textContent = 'before'")
    page.click("#go")
    page.wait("document.getElementById('n-end').textContent === 'length'")
    found = {}
    for kind in ("jsonl", "html", "svg"):
        found[kind] = page.run(
            "return (async () => { const { lines } = await import('/static/save.js');"
            " const { stage } = await import('/static/write.js'); const events = lines(stage.recording);"
            " if (arguments[0] === 'jsonl') return events.map(e => JSON.stringify(e) + '\\n').join('');"
            " const { file } = await import('/static/api.js');"
            " return (await file('/pictures', { format: arguments[0], title: events[0].title, events })).text(); })()",
            kind,
        )
    return found


def test_what_the_page_saves_follows_the_format(kept: dict[str, str]) -> None:
    entries = entries_of(kept["jsonl"])
    assert broken(entries) == [] and entries[0]["prompt"] == "a fox </script><b>"
    assert kept["svg"].startswith("<svg ")


def test_the_saved_player_plays_every_step_from_a_file(page: Browser, kept: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "decode.html"
    path.write_text(kept["html"], encoding="utf-8")
    entries = entries_of(kept["jsonl"])
    steps, done = sum(one["kind"] == "draft" for one in entries), entries[-1]
    with browser() as player:
        player.go(path.as_uri())
        assert player.wait("document.getElementById('scrub').max") == str(steps)
        assert player.run("return document.getElementById('canvas').textContent") == entries[0]["prompt"] + done["text"]
        seen = _walk(player, steps)
        drafts = [one for one in entries if one["kind"] == "draft"]
        assert [one["masks"] for one in seen[1:-1]] == [
            sum(token["state"] == "mask" for token in draft["tokens"]) for draft in drafts[:-1]
        ]
        edits = [sum(token["state"] == "edited" for token in draft["tokens"]) for draft in drafts]
        assert seen[-1]["edits"] == str(sum(edits)) and sum(edits) > 0
        player.run("document.getElementById('map').click()")
        assert player.run("return document.querySelectorAll('.cell.mapped').length") == len(done["token_ids"])
        player.run("document.getElementById('map').click(); document.getElementById('play').click()")
        player.wait(f"document.getElementById('scrub').value === '{steps}'")
        assert player.console() == []


def _walk(player: Browser, steps: int) -> list[dict[str, Any]]:
    script = (
        "const s = document.getElementById('scrub'); s.value = arguments[0]; s.dispatchEvent(new Event('input'));"
        "return {masks: document.querySelectorAll('#canvas .cell.mask').length,"
        " edits: document.getElementById('n-edits').textContent}"
    )
    return [player.run(script, step) for step in range(steps + 1)]


def test_a_recording_of_the_python_side_plays_too(tmp_path: Path) -> None:
    events = (
        {"kind": "begin", "format": "block-diffusion-events", "version": 1, "prompt": "", "infill": True},
        {"kind": "draft", "step": 1, "tokens": [
            {"pos": 0, "id": 1, "text": "a", "state": "given"}, {"pos": 1, "id": 9, "text": "", "state": "mask"}]},
        {"kind": "draft", "step": 2, "tokens": [
            {"pos": 0, "id": 1, "text": "a", "state": "given"}, {"pos": 1, "id": 2, "text": " b", "state": "new"}]},
        {"kind": "commit", "text": "a b", "token_ids": [1, 2]},
        {"kind": "done", "text": "a b", "token_ids": [1, 2], "finish_reason": "length"},
    )  # fmt: skip
    assert broken(events) == []
    path = tmp_path / "infill.html"
    path.write_text(Recording(events).html(), encoding="utf-8")
    with browser() as player:
        player.go(path.as_uri())
        assert player.run("return document.getElementById('canvas').textContent") == "a b"
        assert _walk(player, 2)[1]["masks"] == 1
        assert player.run("return document.querySelectorAll('.cell.given').length") == 0


def test_nothing_is_wider_than_a_phone_and_every_control_has_a_name(page: Browser) -> None:
    page.call("POST", "/goog/cdp/execute", {
        "cmd": "Emulation.setDeviceMetricsOverride",
        "params": {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    })  # fmt: skip
    for tab in TABS:
        page.run("document.getElementById(`tab-${arguments[0]}`).click()", tab)
        page.wait(f"!document.getElementById('view-{tab}').hidden")
        assert page.run("return document.documentElement.scrollWidth") <= 390, tab
    nameless = page.run(
        "return [...document.querySelectorAll('button, input, select, textarea')].filter(e => !(e.labels?.length ||"
        " e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.outerHTML)"
    )
    twice = page.run(
        "const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
        " return ids.filter((id, at) => ids.indexOf(id) !== at)"
    )
    assert nameless == [] and twice == []


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb. Source: WCAG 2.1, relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_is_readable_in_both_themes(project: Path) -> None:
    css = (project / "backend/src/hildanext/report/player/canvas.css").read_text(encoding="utf-8")
    for block in re.findall(r"^:root[^{]*\{(.*?--ink.*?)\}", css, re.S | re.M):
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        pairs = [(ink, ground) for ink in ("ink", "soft", "faint", "bad") for ground in ("page", "panel")]
        for ink, ground in [*pairs, ("soft", "mask"), ("edit", "edit-back"), ("blue-ink", "blue"), ("bad", "bad-back")]:
            high, low = sorted((luminance(colour[ink]), luminance(colour[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{ink} on {ground}"


def test_the_page_said_nothing_on_its_console(page: Browser) -> None:
    assert [line for line in page.console() if "Content Security Policy" in line or "Uncaught" in line] == []
