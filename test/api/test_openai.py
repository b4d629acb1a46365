# The OpenAI-compatible routes, spoken to by the `openai` package itself.
# Entry points: pytest.
# Answers come from the scripted session, so every text is known beforehand.
"""OpenAI-compatible routes."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from api.scripted import story

from hildanext.api.openai_bodies import NEUTRAL, ChatBody, CompletionBody
from hildanext.decoding.request import Request

TURNS: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(served: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0)


def said(new: int, **values: Any) -> str:
    return "".join(story(Request.of(messages=tuple(TURNS), max_new_tokens=new, **values)))


def test_the_one_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").owned_by == "hildanext"


def test_a_chat_is_answered_with_usage_and_reason(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="scripted", messages=TURNS, max_tokens=9)
    assert reply.choices[0].message.content == said(9)
    assert reply.choices[0].finish_reason == "length" and reply.choices[0].message.role == "assistant"
    assert reply.usage is not None and (reply.usage.completion_tokens, reply.usage.total_tokens) == (9, 14)


def test_a_chat_stream_adds_up_and_ends_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="scripted", messages=TURNS, max_completion_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said(20)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 20


def test_samples_differ_and_carry_their_index(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="scripted", messages=TURNS, max_tokens=9, n=3)
    assert [choice.message.content for choice in reply.choices] == [said(9, sample=i) for i in range(3)]
    stream = client.chat.completions.create(model="scripted", messages=TURNS, max_tokens=9, n=3, stream=True)
    texts = ["", "", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [said(9, sample=i) for i in range(3)]


def test_completions_take_texts_and_ids(client: openai.OpenAI) -> None:
    one = client.completions.create(model="scripted", prompt="ab", max_tokens=5)
    assert one.choices[0].text == "".join(story(Request.of(prompt="ab", max_new_tokens=5)))
    two = client.completions.create(model="scripted", prompt=["ab", "cd"], max_tokens=5, n=2)
    assert len(two.choices) == 4 and two.usage is not None and two.usage.prompt_tokens == 10
    ids = client.completions.create(model="scripted", prompt=[1, 2, 3], max_tokens=5)
    assert ids.choices[0].text == "".join(story(Request.of(prompt_ids=(1, 2, 3), max_new_tokens=5)))
    text = "".join(
        c.choices[0].text for c in client.completions.create(model="scripted", prompt="ab", max_tokens=5, stream=True)
    )
    assert text == one.choices[0].text


def test_seed_stop_and_our_own_fields_arrive(client: openai.OpenAI) -> None:
    extra = {"mode": "S_MODE", "tau_mask": 0.3}
    reply = client.chat.completions.create(
        model="scripted", messages=TURNS, max_tokens=9, seed=5, temperature=0.5, top_p=0.9, extra_body=extra
    )
    assert reply.choices[0].message.content == said(9, seed=5, mode="S_MODE", tau_mask=0.3)
    word = said(9).split()[4]
    cut = client.chat.completions.create(model="scripted", messages=TURNS, max_tokens=9, stop=word)
    assert word not in str(cut.choices[0].message.content) and cut.choices[0].finish_reason == "stop"


def test_text_parts_of_a_message_are_joined(client: openai.OpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]}]
    whole: Any = [{"role": "user", "content": "hello"}]
    texts = [client.chat.completions.create(model="scripted", messages=m, max_tokens=5) for m in (parts, whole)]
    assert texts[0].choices[0].message.content == texts[1].choices[0].message.content


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logprobs", True), ("tools", [{"type": "function", "function": {"name": "f"}}]), ("presence_penalty", 0.5),
        ("frequency_penalty", 1.0), ("logit_bias", {"5": 1}), ("response_format", {"type": "json_object"}),
        ("reasoning_effort", "high"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_a_400_that_names_it(client: openai.OpenAI, name: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="scripted", messages=TURNS, extra_body={name: value})
    assert found.value.param == name and name in found.value.message


def test_values_that_change_nothing_are_accepted(client: openai.OpenAI) -> None:
    extra = {"presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "response_format": {"type": "text"}}
    reply = client.chat.completions.create(model="scripted", messages=TURNS, max_tokens=3, user="u", extra_body=extra)
    assert reply.choices[0].message.content == said(3)


def test_errors_reach_the_client_as_its_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=TURNS)
    with pytest.raises(openai.UnprocessableEntityError, match="frobnicate"):
        client.chat.completions.create(model="scripted", messages=TURNS, extra_body={"frobnicate": 1})
    with pytest.raises(openai.BadRequestError, match="at most 4096"):
        client.chat.completions.create(model="scripted", messages=TURNS, max_tokens=100_000)
    with pytest.raises(openai.BadRequestError, match="samples"):
        client.chat.completions.create(model="scripted", messages=TURNS, n=100)
    with pytest.raises(openai.BadRequestError, match="refused"):
        client.completions.create(model="scripted", prompt="refuse", stream=True)


def test_an_async_client_may_drop_a_stream(served: httpx.Client, client: openai.OpenAI, session: Any) -> None:
    before = len(session.cancelled)
    stream = client.chat.completions.create(model="scripted", messages=TURNS, max_tokens=4000, stream=True)
    next(iter(stream))
    stream.close()
    import time

    deadline = time.monotonic() + 5
    while len(session.cancelled) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(session.cancelled) == before + 1


def test_every_unsupported_field_is_declared_by_a_body() -> None:
    declared = {*ChatBody.model_fields, *CompletionBody.model_fields}
    assert set(NEUTRAL) <= declared
