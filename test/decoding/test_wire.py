# Real streams follow docs/events.md rule by rule, and the checker sees each rule broken.
# Entry points: pytest. The page's own example is a stream too.
# The oracle replays a stream with a reader of ten lines that knows nothing of the checker.
"""The format of events."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import hildanext
from hildanext.cli import main
from hildanext.decoding.wire import FIELDS, STATES, begun, broken, entries_of, entry, text_of
from hildanext.errors import DataError

ASKED: list[dict[str, Any]] = [
    {"prompt": "One day"},
    {"prompt": "One day", "mode": "S_MODE", "max_new_tokens": 70},
    {"prompt": "Tom had", "window_blocks": 3, "max_new_tokens": 60, "mode": "S_MODE"},
    {"prompt": "Lily <gap:5> went to the park. Then <gap:20> home.", "infill": True},
    {"prompt": "Lily had a", "suffix": " in her bag. Then they all walked home.", "max_new_tokens": 12},
    {"prompt": "Lily had a", "suffix": " in her bag. Then they all walked home.", "max_new_tokens": 12, "block": 8},
    {"prompt": "One day", "stop": ["the island"]},
    {"prompt": "One day", "policy": "remask", "max_new_tokens": 24},
    {"prompt": "One day", "block": 4, "temperature": 1.0, "seed": 3, "max_new_tokens": 18},
]
Entries = list[dict[str, Any]]


@pytest.fixture(scope="module")
def model() -> Any:
    return hildanext.load("tiny")


@pytest.fixture(scope="module")
def whole(model: Any) -> Entries:
    """A stream with every state in it."""
    return stream(model, ASKED[1])


def stream(model: Any, asked: dict[str, Any]) -> Entries:
    values = dict(asked)
    prompt = values.pop("prompt")
    events = [
        entry(event)
        for event in model.stream(prompt, **({} if values.get("infill") else {"max_new_tokens": 32}) | values)
    ]
    return entries_of(text_of([begun(prompt, infill=bool(values.get("infill"))), *events]))


def read(entries: Entries) -> tuple[str, list[int]]:
    """The text and ids a reader of the page would have shown at the end."""
    text, ids, ended = "", [], False
    for one in entries:
        assert not ended
        if one["kind"] == "commit":
            text, ids = text + one["text"], ids + one["token_ids"]
        ended = one["kind"] == "done"
    assert ended
    return text, ids


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "-".join(map(str, list(asked)[1:])) or "plain")
def test_a_real_stream_follows_the_page(model: Any, asked: dict[str, Any]) -> None:
    entries = stream(model, asked)
    assert broken(entries) == []
    assert read(entries) == (entries[-1]["text"], entries[-1]["token_ids"])
    ids = {token["id"] for one in entries if one["kind"] == "draft" for token in one["tokens"] if not token["text"]}
    assert ids == {model.denoiser.mask_id}


def test_the_states_are_what_a_reader_finds_by_comparing_drafts(model: Any, whole: Entries) -> None:
    canvas: dict[int, int] = {}
    mask, found = model.denoiser.mask_id, set()
    for one in whole:
        for token in one["tokens"] if one["kind"] == "draft" else ():
            was, now = canvas.get(token["pos"], mask), token["id"]
            change = {(True, True): "mask", (True, False): "new", (False, True): "mask"}.get(
                (was == mask, now == mask), "kept" if was == now else "edited"
            )
            if token["state"] != "given":
                assert token["state"] == change
                found.add(change)
            canvas[token["pos"]] = now
    assert found == {"mask", "new", "edited", "kept"}


def _swap(kind: str, number: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[Entries], Any]:
    return lambda entries: change([one for one in entries if one["kind"] == kind][number])


def _state(name: str, to: str) -> Callable[[Entries], None]:
    def plant(entries: Entries) -> None:
        drafts = [one for one in entries if one["kind"] == "draft"]
        next(token for one in drafts for token in one["tokens"] if token["state"] == name)["state"] = to

    return plant


FAULTS: list[tuple[Callable[[Entries], Any], str]] = [
    (_swap("draft", 1, lambda one: one.update(step=1)), "step 1 after step 1"),
    (_swap("draft", 0, lambda one: one["tokens"].pop(4)), "not one after another"),
    (_swap("draft", -1, lambda one: [token.update(pos=token["pos"] - 60) for token in one["tokens"]]), "drafted again"),
    (_state("kept", "new"), "new, but a token was there"),
    (_state("new", "edited"), "edited, but nothing else was there"),
    (_state("new", "kept"), "kept, but it was"),
    (_state("mask", "given"), "after given"),
    (_state("mask", "blank"), "state 'blank'"),
    (_swap("draft", 0, lambda one: one["tokens"][2].update(text="x")), "a mask with a text"),
    (_swap("commit", 0, lambda one: one["token_ids"].reverse()), "not those last drafted"),
    (_swap("commit", 0, lambda one: one.update(text="")), "not those of the commits"),
    (lambda entries: entries.insert(3, entries[-1]), "the request has ended"),
    (lambda entries: entries.pop(), "no done or error"),
    (lambda entries: entries.append(entries.pop(0)), "not the first line"),
    (_swap("begin", 0, lambda one: one.update(version=2)), "expected block-diffusion-events version 1"),
    (_swap("commit", 0, lambda one: one.pop("text")), "text: None, expected str"),
    (_swap("commit", 0, lambda one: one.update(request=[])), "request: []"),
    (lambda entries: entries[2].pop("kind"), "no kind"),
]


@pytest.mark.parametrize(("plant", "expected"), FAULTS, ids=[words for _, words in FAULTS])
def test_a_broken_rule_is_seen(whole: Entries, plant: Callable[[Entries], Any], expected: str) -> None:
    entries = deepcopy(whole)
    plant(entries)
    assert any(expected in line for line in broken(entries)), broken(entries)


def test_kinds_and_fields_of_later_versions_are_passed_over(whole: Entries) -> None:
    entries = [{**one, "later": 1} for one in whole]
    assert broken([*entries[:3], {"kind": "hint"}, *entries[3:]]) == []


def test_the_page_names_every_kind_field_and_state_and_its_example_is_a_stream(project: Path) -> None:
    page = (project / "docs" / "events.md").read_text(encoding="utf-8")
    example = entries_of(re.findall(r"```json\n(.*?)```", page, re.S)[0])
    assert broken(example) == [] and [one["kind"] for one in example] == ["begin", "draft", "draft", "commit", "done"]
    names = {*FIELDS, *STATES, *(name for fields in FIELDS.values() for name in fields), *example[1]["tokens"][0]}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_a_line_that_is_no_object_is_refused_by_its_number() -> None:
    with pytest.raises(DataError, match="line 2 is no object"):
        entries_of('{"kind": "begin"}\n3\n')
    with pytest.raises(DataError, match="line 1 is not JSON"):
        entries_of("x")


def test_a_saved_stream_is_the_format(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "events.jsonl"
    assert main(["generate", "--prompt", "One day", "--max-new-tokens", "20", "--json", "--save", str(out)]) == 0
    entries = entries_of(out.read_text(encoding="utf-8"))
    result = json.loads(capsys.readouterr().out)
    assert broken(entries) == [] and entries[0]["prompt"] == "One day"
    assert (entries[-1]["text"], entries[-1]["token_ids"]) == (result["text"], result["token_ids"])
