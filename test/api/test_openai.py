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
from waiting import until

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
    assert two.usage.prompt_tokens_details is not None and two.usage.prompt_tokens_details.cached_tokens == 4
    ids = client.completions.create(model="scripted", prompt=[1, 2, 3], max_tokens=5)
    assert ids.choices[0].text == "".join(story(Request.of(prompt_ids=(1, 2, 3), max_new_tokens=5)))
    text = "".join(
        c.choices[0].text for c in client.completions.create(model="scripted", prompt="ab", max_tokens=5, stream=True)
    )
    assert text == one.choices[0].text


def test_several_lists_of_ids_are_several_prompts(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="scripted", prompt=[[1, 2], [3]], max_tokens=5)
    ids = [(1, 2), (3,)]
    assert [c.text for c in reply.choices] == ["".join(story(Request.of(prompt_ids=i, max_new_tokens=5))) for i in ids]


def test_a_stream_of_completions_ends_with_usage(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="scripted", prompt="ab", max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    last = list(stream)[-1]
    assert last.usage is not None and (last.usage.completion_tokens, last.choices) == (5, [])


def test_four_stops_and_text_beyond_ascii_arrive(client: openai.OpenAI) -> None:
    turns: Any = [{"role": "user", "content": "ünï 你好 🙂"}]
    words = "".join(story(Request.of(messages=tuple(turns), max_new_tokens=9))).split()
    stops = ["é", "🙂", "你好", words[5]]
    reply = client.chat.completions.create(model="scripted", messages=turns, max_completion_tokens=9, stop=stops)
    text = str(reply.choices[0].message.content)
    assert words[5] not in text and reply.choices[0].finish_reason == "stop"


def test_an_answer_can_be_sent_back_as_the_package_gives_it(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="scripted", messages=TURNS, max_tokens=5).choices[0].message
    again: Any = {"role": "user", "content": "go on"}
    for turn in (said, said.model_dump(), {**said.model_dump(), "tool_calls": [], "annotations": []}):
        conversation: Any = [*TURNS, turn, again]
        assert client.chat.completions.create(model="scripted", messages=conversation, max_tokens=5).choices


def test_seed_stop_and_our_own_fields_arrive(client: openai.OpenAI) -> None:
    extra = {"mode": "S_MODE", "tau_mask": 0.3}
    reply = client.chat.completions.create(
        model="scripted", messages=TURNS, max_tokens=9, seed=5, temperature=0.5, top_p=0.9, extra_body=extra
    )
    assert reply.choices[0].message.content == said(9, seed=5, mode="S_MODE", tau_mask=0.3, temperature=0.5)
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
        ("functions", [{"name": "f"}]), ("presence_penalty", 0.5),
        ("frequency_penalty", 1.0), ("logit_bias", {"5": 1}), ("function_call", "auto"),
        ("reasoning_effort", "high"), ("modalities", ["audio"]), ("tool_choice", "required"),
        ("top_logprobs", 2), ("store", True), ("service_tier", "flex"), ("verbosity", "low"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_a_400_that_names_it(client: openai.OpenAI, name: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="scripted", messages=TURNS, extra_body={name: value})
    assert found.value.param == name and name in found.value.message


@pytest.mark.parametrize(("name", "value"), [("echo", True), ("best_of", 2)])
def test_what_completions_do_not_support_is_a_400_that_names_it(client: openai.OpenAI, name: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model="scripted", prompt="ab", extra_body={name: value})
    assert found.value.param == name and name in found.value.message


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"stop": ""}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0"),
        ({"n": 0}, "n"),
        ({"extra_body": {"Temperature": 1}}, "Temperature"),
        ({"extra_body": {"str": 1}}, "str"),
    ],
)
def test_a_wrong_value_is_named_as_the_client_wrote_it(
    client: openai.OpenAI, values: dict[str, Any], name: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as found:
        client.chat.completions.create(**({"model": "scripted", "messages": TURNS} | values))
    assert found.value.param == name


def test_what_the_engine_refuses_names_its_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model="scripted", prompt="refuse")
    assert found.value.param == "prompt"


def test_values_that_change_nothing_are_accepted(client: openai.OpenAI) -> None:
    extra = {"presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "response_format": {"type": "text"}}
    extra |= {"prompt_cache_key": "k", "safety_identifier": "s"}
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
    until(lambda: len(session.cancelled) > before)
    assert len(session.cancelled) == before + 1


def test_every_unsupported_field_is_declared_by_a_body() -> None:
    declared = {*ChatBody.model_fields, *CompletionBody.model_fields}
    assert set(NEUTRAL) <= declared
