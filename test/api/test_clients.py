# What OpenAI clients and plain tools send and look for: omitted limits, seeds, HEAD, wrong addresses, histories.
# Entry points: pytest.
# Over the bundled model, because a window, a seed and a tokenizer are the real ones there.
"""Clients as they are."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from api.live import config_in, live_server, wait_ready
from waiting import PATIENCE, until

from hildanext.decoding.wording import in_words_of
from hildanext.engines.transformers import NativeSession

TURNS: Any = [{"role": "user", "content": "Write a story about Lily and a fox."}]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the bundled model with a window of 96 positions."""
    config = config_in(tmp_path_factory.mktemp("project"), engines=[{"type": "tiny"}])
    decode = config.decode.model_copy(update={"window": 96, "max_new_tokens": 64})
    with live_server(config.model_copy(update={"decode": decode})) as (address, _):
        wait_ready(address)
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def long_prompt(client: openai.OpenAI, tokens: int) -> str:
    text = "the fox " * tokens
    used = client.completions.create(model="tiny", prompt="the fox the fox", max_tokens=1).usage
    assert used is not None
    return text[: len("the fox ") * (2 * tokens // used.prompt_tokens)]


def test_a_limit_that_is_left_out_is_what_the_window_has_room_for(client: openai.OpenAI, url: str) -> None:
    prompt = long_prompt(client, 70)
    body = {"prompt": prompt, "ignore_eos": True}
    reply = client.completions.create(model="tiny", prompt=prompt, extra_body={"ignore_eos": True})
    used = reply.usage
    assert used is not None and 60 < used.prompt_tokens < 96 and used.total_tokens == 96
    assert httpx.post(f"{url}/generate", json=body).json()["metrics"]["tokens"] == used.completion_tokens


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(("words", "new"), [(70, 60), (400, None), (400, 5)])
def test_what_is_too_long_says_it_in_the_words_clients_look_for(
    client: openai.OpenAI, chat: bool, words: int, new: int | None
) -> None:
    text, limit = long_prompt(client, words), {} if new is None else {"max_tokens": new}
    with pytest.raises(openai.BadRequestError) as found:
        if chat:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **limit)  # type: ignore[call-overload]
        else:
            client.completions.create(model="tiny", prompt=text, **limit)  # type: ignore[call-overload]
    message = found.value.message
    assert found.value.code == "context_length_exceeded" and "maximum context length" in message
    assert "max_tokens" in message and "max_new_tokens" not in message and "at most 0" not in message
    assert found.value.param == ("max_tokens" if words == 70 else "messages" if chat else "prompt")


def test_six_unseeded_requests_give_six_texts_and_their_seed_gives_each_again(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": TURNS, "temperature": 1.0, "max_tokens": 48}
    texts, seeds = [], []
    for _ in range(6):
        reply = client.chat.completions.create(**asked)  # type: ignore[call-overload]
        texts.append(reply.choices[0].message.content)
        seeds.append(reply.hildanext["seed"])
    assert len(set(texts)) == len(set(seeds)) == 6
    again = client.chat.completions.create(**asked, seed=seeds[3])  # type: ignore[call-overload]
    assert again.choices[0].message.content == texts[3]
    last = list(client.chat.completions.create(**asked, stream=True))[-1]  # type: ignore[call-overload]
    assert isinstance(last.hildanext["seed"], int) and last.hildanext["seed"] not in seeds


def test_a_list_of_one_prompt_repeated_is_so_many_texts(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt=["Lily had a"] * 3, n=2, temperature=1.0, max_tokens=40)
    assert len({choice.text for choice in reply.choices}) == 6


def test_minus_one_is_a_fresh_seed_and_a_conversation_has_one_without_asking(url: str) -> None:
    def seed(**body: Any) -> int:
        reply = httpx.post(f"{url}/generate", json={"max_new_tokens": 4, **body})
        assert reply.status_code == 200, reply.text
        return int(reply.json()["seed"])

    assert seed(prompt="a") == seed(prompt="a", seed=0) == 0 and seed(prompt="a", seed=7) == 7
    assert len({seed(prompt="a", seed=-1) for _ in range(3)} | {seed(messages=TURNS) for _ in range(3)}) == 6


@pytest.mark.parametrize("path", ["/", "/health", "/modes", "/metrics", "/v1/models", "/v1/models/tiny"])
def test_a_head_is_a_get_without_its_body(url: str, path: str) -> None:
    head, get = httpx.head(url + path), httpx.get(url + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_curl_without_a_content_type_is_told_which(url: str) -> None:
    body = json.dumps({"prompt": "a"})
    for header in ([], ["-H", "content-type:"]):
        call = ["curl", "-s", *header, "-d", body, f"{url}/generate"]
        reply = json.loads(subprocess.run(call, capture_output=True, check=True).stdout)["error"]
        assert "content-type: application/json" in reply["message"] and reply["param"] is None


@pytest.mark.parametrize(
    "path",
    [
        "/chat/completions",
        "/v1/v1/chat/completions",
        "/v1/chat/completions/chat/completions",
        "/api/v1/chat/completions",
    ],
)
def test_a_wrong_base_url_is_answered_with_the_right_one(url: str, path: str) -> None:
    reply = httpx.post(url + path, json={"model": "tiny", "messages": TURNS})
    message = reply.json()["error"]["message"]
    assert reply.status_code == 404 and "/v1/chat/completions" in message and f"{url}/v1" in message


def test_other_unknown_places_and_methods_are_named(url: str) -> None:
    assert "no route /v1/embeddings" in httpx.post(f"{url}/v1/embeddings", json={}).json()["error"]["message"]
    assert "but /generate" in httpx.post(f"{url}/v1/generate", json={}).json()["error"]["message"]
    reply = httpx.get(f"{url}/generate")
    assert reply.status_code == 405 and "POST" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"3", b'{"prompt": "a", "prompt_ids": [1]}', b'{"model": "tiny", "prompt":']
)
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_param_names_a_field_or_is_null(url: str, path: str, body: bytes) -> None:
    reply = httpx.post(url + path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422 and reply.json()["error"]["param"] in (None, "model", "prompt", "messages")


@pytest.mark.parametrize("values", [{"stop": ""}, {"stop": [""]}, {"seed": "x"}, {"prompt": [1, "a"]}, {"tau_mask": 2}])
def test_a_wrong_value_is_one_sentence_about_it(url: str, values: dict[str, Any]) -> None:
    reply = httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "a", **values}).json()["error"]
    (name,) = values
    assert str(reply["param"]).startswith(name) and reply["message"].count(f"{name}") <= 2
    assert name == "prompt" or ";" not in reply["message"].replace("nothing; leave", "")


def test_a_history_as_clients_keep_it_is_accepted(client: openai.OpenAI) -> None:
    part: Any = {"type": "text", "text": "Hello.", "cache_control": {"type": "ephemeral"}}
    turns: Any = [
        {"role": "system", "content": [part], "cache_control": {"type": "ephemeral"}},
        {"role": "user", "content": [part]}, {"role": "assistant", "content": None}, {"role": "user", "content": "Hi."},
    ]  # fmt: skip
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    reply = client.chat.completions.create(model="tiny", messages=turns, max_tokens=4, tools=[tool], tool_choice="none")
    assert reply.choices[0].finish_reason
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model="tiny", messages=turns, max_tokens=4, tools=[tool])
    with pytest.raises(openai.UnprocessableEntityError, match="a turn of user needs text"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": None}], max_tokens=4)  # type: ignore[list-item]


def test_advice_names_only_what_the_interface_has(client: openai.OpenAI, url: str) -> None:
    mask = httpx.get(f"{url}/health").json()
    assert mask["engine"] == "tiny"
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model="tiny", prompt=[httpx_mask(url)], max_tokens=4)
    assert "mask token" in found.value.message and "infill" not in found.value.message
    assert "infill" in httpx.post(f"{url}/generate", json={"prompt_ids": [httpx_mask(url)]}).json()["error"]["message"]
    text = "prompt: no tokenizer; give prompt_ids; or less than max_new_tokens"
    assert in_words_of("openai", text, "messages") == "messages: no tokenizer; or less than max_tokens"
    assert in_words_of("native", text) == text and "prompt_ids" not in in_words_of("cli", text)


def httpx_mask(url: str) -> int:
    from hildanext.models.load import model_folder
    from hildanext.models.meta import HildaMeta

    mask = HildaMeta.read(model_folder("tiny")).mask_id
    assert mask is not None
    return mask


def test_a_client_that_hangs_up_leaves_one_line_and_no_traceback(
    url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, go, step = threading.Event(), threading.Event(), NativeSession.step

    def held(self: NativeSession) -> Any:
        at_work.set()
        go.wait(PATIENCE)
        return step(self)

    monkeypatch.setattr(NativeSession, "step", held)
    capfd.readouterr()
    body, said = json.dumps({"prompt": "a", "max_new_tokens": 64, "ignore_eos": True}), list[str]()
    head = f"content-type: application/json\r\ncontent-length: {len(body)}"
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), PATIENCE) as wire:
        wire.sendall(f"POST /generate HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n{body}".encode())
        assert at_work.wait(PATIENCE)
    until(lambda: said.append(capfd.readouterr().err) or '"/generate"' in "".join(said))
    go.set()
    until(lambda: httpx.get(f"{url}/health").json()["queue"]["requests"] == 0)
    time.sleep(0.2)  # a late traceback would be a fault
    written = "".join((*said, capfd.readouterr().err))
    assert all(json.loads(line) for line in written.splitlines()) and '"status": 499' in written, written
