# Pictures and plans over HTTP: what a stream said becomes a file; a plan is the command's own, refusals in its words.
# Entry points: pytest, over the scripted server.
# Files are counted by Pillow and an XML parser.
"""POST /pictures, GET /jobs/schema, POST /jobs/plan."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from hildanext.api import job_plan
from hildanext.config.root import config_schema
from hildanext.decoding.wire import begun, broken

SURFACE = Path(__file__).parents[1] / "guards" / "cli_surface.json"


def streamed(served: httpx.Client, prompt: str = "a fox") -> list[dict[str, Any]]:
    """The events of a generation as the page keeps them."""
    found = [begun(prompt)]
    body = {"prompt": prompt, "max_new_tokens": 16, "stream": True}
    with served.stream("POST", "/generate", json=body) as reply:
        for piece in "".join(reply.iter_text()).split("\n\n"):
            fields = dict(line.split(": ", 1) for line in piece.splitlines() if not line.startswith(":"))
            if fields:
                found.append({"kind": fields["event"], **json.loads(fields["data"])})
    request = found[1]["request"]
    return [found[0], *({**one, "request": request} for one in found[1:])]


def test_a_stream_over_http_is_in_the_format_and_becomes_every_picture(served: httpx.Client) -> None:
    events = streamed(served)
    assert broken(events) == []
    drafts = sum(one["kind"] == "draft" for one in events)
    svg = served.post("/pictures", json={"format": "svg", "events": events, "title": "<b>"})
    drawn = ElementTree.fromstring(svg.text)
    assert len(drawn.findall("{http://www.w3.org/2000/svg}g")) == drafts + 1 and drawn.get("aria-label") == "<b>"
    assert svg.headers["content-type"] == "image/svg+xml" and "attachment" in svg.headers["content-disposition"]
    html = served.post("/pictures", json={"format": "html", "events": events}).text
    held = re.findall(r'id="events">(.*?)</script>', html, re.S)
    assert json.loads(held[0])[1:] == events[1:]
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    gif = served.post("/pictures", json={"format": "gif", "events": events})
    assert Image.open(io.BytesIO(gif.content)).n_frames == drafts + 1


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([], "no draft and no commit"),
        ([{"kind": "draft", "step": 1, "tokens": [{"pos": 1}]}], "id: None, expected int"),
        ([{"kind": "commit", "text": "a", "token_ids": [1]}], "no done or error"),
        ([{"a": 1}], "no kind"),
    ],
)
def test_what_is_not_in_the_format_is_refused_in_words(served: httpx.Client, events: list[Any], words: str) -> None:
    reply = served.post("/pictures", json={"format": "svg", "events": events})
    assert reply.status_code == 400 and words in reply.json()["error"]["message"]


def test_an_unknown_format_is_refused(served: httpx.Client) -> None:
    assert served.post("/pictures", json={"format": "exe", "events": []}).status_code == 422


def test_the_schema_is_the_configurations(served: httpx.Client) -> None:
    assert served.get("/jobs/schema").json() == json.loads(json.dumps(config_schema()))


def plan(served: httpx.Client, steps: int, command: str = "convert-wsd") -> httpx.Response:
    return served.post("/jobs/plan", json={"command": command, "set": [f"train.steps={steps}"]})


def test_a_plan_is_what_the_command_says_and_nothing_is_left_of_it(served: httpx.Client, served_folder: Path) -> None:
    before = sorted(served_folder.rglob("*"))
    found = plan(served, 30).json()
    assert [stage["steps"] for stage in found["stages"]] == [10, 20] and found["seconds"] is None
    assert sorted(served_folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("steps", "command", "status", "words"),
    [
        (400, "sft", 400, "no shards, run tokenize"),
        (500, "sft", 500, "no shards"),
        (600, "sft", 500, "without a plan"),
        (30, "eval", 400, "eval has no plan"),
    ],
)
def test_a_refused_plan_is_told_in_the_commands_words(
    served: httpx.Client, steps: int, command: str, status: int, words: str
) -> None:
    reply = plan(served, steps, command)
    assert reply.status_code == status and words in reply.json()["error"]["message"]


def test_a_plan_is_confined_as_a_job_is(served: httpx.Client) -> None:
    reply = served.post("/jobs/plan", json={"command": "sft", "set": ["model.path=/etc"]})
    assert reply.status_code == 403


def test_one_plan_is_made_at_a_time(served: httpx.Client) -> None:
    with job_plan.PLANNING:
        assert plan(served, 30).status_code == 429


def test_the_commands_with_a_plan_are_those_with_the_flag(served: httpx.Client) -> None:
    surface = json.loads(SURFACE.read_text())
    with_flag = {name for name, flags in surface.items() if "--print-plan" in flags}
    listed = {kind["command"] for kind in served.get("/jobs/kinds").json()["kinds"] if kind["plan"]}
    assert listed == with_flag and "convert-wsd" in listed
