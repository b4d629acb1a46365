# Gaps over HTTP: OpenAI's suffix by its own client, Ollama's and llama.cpp's fields by httpx, chosen lengths, refusals.
# Entry points: pytest.
# Over the bundled model: the story world says whether what was put between prefix and suffix is right.
"""Infilling for clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from api.live import config_in, live_server, wait_ready
from api.scripted import ScriptedSession
from waiting import until

from hildanext.api.gaps import MOST, lengths_of
from hildanext.measure.filling import ladder
from hildanext.world import check, story

TOLD = story("9:1")
BEFORE, AFTER = " ".join(TOLD.sentences[:3]), f" {' '.join(TOLD.sentences[4:])}"
AROUND: dict[str, Any] = {"prompt": BEFORE, "suffix": AFTER}
TRIED = [8, 9, 10]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = config_in(tmp_path_factory.mktemp("project"), engines=[{"type": "tiny"}], queue=12)
    with live_server(config) as (address, _):
        wait_ready(address)
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def chosen(client: openai.OpenAI) -> Any:
    return client.completions.create(model="tiny", **AROUND, extra_body={"lengths": TRIED}, seed=0)


def post(url: str, path: str, status: int = 200, **body: Any) -> Any:
    reply = httpx.post(url + path, json=body)
    assert reply.status_code == status, reply.text
    return reply.json()


def test_a_chosen_length_is_the_one_whose_text_fits(chosen: Any) -> None:
    (choice,) = chosen.choices
    assert check(BEFORE + choice.text + AFTER).valid and TOLD.world.colour in choice.text
    assert chosen.usage.completion_tokens == 9 and choice.finish_reason == "length"
    assert any(
        "9 tokens, the shortest within 1 nat of the best of 3 lengths, 8 to 10" in one
        for one in chosen.hildanext["notes"]
    )


def test_forwards_are_those_of_every_length(client: openai.OpenAI, chosen: Any, url: str) -> None:
    each = [client.completions.create(model="tiny", **AROUND, extra_body={"lengths": [one]}, seed=0) for one in TRIED]
    assert chosen.hildanext["forwards"] == sum(one.hildanext["forwards"] for one in each)
    assert [one.usage.completion_tokens for one in each] == TRIED
    assert each[1].choices[0].text == chosen.choices[0].text
    assert not check(BEFORE + each[0].choices[0].text + AFTER).valid
    native = post(url, "/generate", **AROUND, max_new_tokens=9)
    assert native["text"] == each[1].choices[0].text


def test_a_stream_gives_the_same_text_in_pieces(client: openai.OpenAI, chosen: Any) -> None:
    for lengths, text in ((TRIED, chosen.choices[0].text), ([9], chosen.choices[0].text)):
        chunks = list(
            client.completions.create(model="tiny", **AROUND, extra_body={"lengths": lengths}, seed=0, stream=True)
        )
        assert "".join(one.choices[0].text for one in chunks) == text
        assert chunks[-1].choices[0].finish_reason == "length" and chunks[-1].hildanext["forwards"] > 0


def test_several_prompts_and_samples_each_get_their_own_gap(client: openai.OpenAI) -> None:
    asked = {**AROUND, "prompt": [BEFORE, BEFORE + " "], "n": 2}
    reply = client.completions.create(model="tiny", **asked, temperature=1.0, extra_body={"lengths": [9]}, seed=1)
    texts = [one.text for one in reply.choices]
    assert len(texts) == 4 and all(one.startswith(" ") for one in texts[:2]) and len(set(texts)) > 1
    assert not any(one.startswith(" ") for one in texts[2:])


def test_ollamas_lines_and_object_hold_the_same_text(url: str, chosen: Any) -> None:
    body = {"model": "tiny", **AROUND, "lengths": TRIED, "options": {"seed": 0, "num_ctx": 512}, "keep_alive": "5m"}
    whole = post(url, "/api/generate", **body, stream=False)
    assert whole["response"] == chosen.choices[0].text and whole["done"] and whole["done_reason"] == "stop"
    assert whole["eval_count"] == 9 and whole["prompt_eval_count"] > 100 and whole["total_duration"] > 0
    with httpx.stream("POST", f"{url}/api/generate", json=body) as reply:
        assert reply.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in reply.iter_lines()]
    assert "".join(one["response"] for one in lines) == whole["response"]
    assert [one["done"] for one in lines] == [False] * (len(lines) - 1) + [True] and lines[-1]["eval_count"] == 9
    assert post(url, "/api/generate", model="tiny", prompt="One day", stream=False)["response"]
    assert httpx.get(f"{url}/api/tags").json()["models"][0]["name"] == "tiny"
    assert "hildanext" in httpx.get(f"{url}/api/version").json()["version"]


def test_llama_cpps_infill_writes_behind_prefix_and_prompt(url: str, chosen: Any) -> None:
    cut = len(BEFORE) - 7
    fields: dict[str, Any] = {
        "input_prefix": BEFORE[:cut], "prompt": BEFORE[cut:], "input_suffix": AFTER, "lengths": TRIED, "seed": 0,
        "samplers": ["top_k"], "n_indent": 0, "t_max_predict_ms": 500, "cache_prompt": True,
    }  # fmt: skip
    whole = post(url, "/infill", **fields, input_extra=[{"filename": "a.py", "text": "x"}])
    assert whole["content"] == chosen.choices[0].text and whole["stop"] and whole["stop_type"] == "limit"
    assert whole["tokens_predicted"] == whole["timings"]["predicted_n"] == 9
    assert "input_extra: 1 pieces were not read" in whole["hildanext"]["notes"]
    with httpx.stream("POST", f"{url}/infill", json={**fields, "stream": True}) as reply:
        data = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: ")]
    assert "".join(one["content"] for one in data) == whole["content"] and data[-1]["stop"] is True
    short = post(url, "/infill", input_prefix=BEFORE, input_suffix=AFTER, n_predict=2, seed=0)
    assert short["tokens_predicted"] <= 2 and any("2 lengths, 1 to 2" in one for one in short["hildanext"]["notes"])


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": "a", "lengths": [3]}, 400, "no suffix"),
        ("/v1/completions", {"model": "tiny", **AROUND, "lengths": []}, 422, "lengths"),
        ("/v1/completions", {"model": "tiny", **AROUND, "lengths": list(range(1, 20))}, 429, "queue"),
        ("/v1/completions", {"model": "tiny", **AROUND, "lengths": [9, 500]}, 400, "of suffix; shorten by"),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "suffix": "b"}, 422,
         "suffix"),
        ("/generate", AROUND, 400, "max_new_tokens"),
        ("/api/generate", {"model": "tiny", **AROUND, "options": {"repeat_penalty": 1.1}}, 400, "repeat_penalty"),
        ("/api/generate", {"model": "tiny", **AROUND, "options": {"nonsense": 1}}, 422, "nonsense"),
        ("/api/generate", {"model": "tiny", "prompt": "a", "system": "b"}, 400, "system"),
        ("/api/generate", {"model": "none", **AROUND}, 404, "none"),
        ("/infill", {"input_prefix": "a"}, 422, "input_suffix"),
        ("/infill", {"input_prefix": "a", "input_suffix": "", "lengths": [3]}, 400, "no suffix"),
        ("/infill", {"input_prefix": "a", "input_suffix": "b", "n_probs": 3}, 400, "n_probs"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(
    url: str, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    assert words in post(url, path, status, **body)["error"]["message"]
    until(lambda: httpx.get(f"{url}/health").json()["queue"]["requests"] == 0)  # at the decoder's next turn


def test_lengths_are_those_asked_for_or_the_ladder() -> None:
    assert lengths_of([9, 3, 9], 4) == (3, 9)
    assert lengths_of(None, 5) == (1, 2, 3, 4, 5) and lengths_of(None, None) == lengths_of([], None) == ladder(MOST)


def test_an_engine_that_scores_nothing_is_told_a_length(tmp_path: Any) -> None:
    with live_server(config_in(tmp_path), ScriptedSession()) as (url, _):
        wait_ready(url)
        refused = post(url, "/v1/completions", 400, model="scripted", **AROUND, lengths=[2, 3])["error"]
        assert "scores no texts" in refused["message"] and refused["param"] == "lengths"
        assert post(url, "/v1/completions", model="scripted", **AROUND, lengths=[3])["usage"]["completion_tokens"] == 3
