# Tool calls and structured output over HTTP: the `openai` package asks and reads, the bundled model answers.
# Entry points: pytest.
# The bundled model never learned tools, so that what is right here comes from the grammar and the reader alone.
"""Tools and response formats of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from api.live import config_in, live_server, wait_ready
from decoding.schemas import fits
from pydantic import BaseModel

import hildanext
from hildanext.decoding.request import CallDelta, Request
from hildanext.decoding.tools import ToolForm, ToolStream, with_tools
from hildanext.engines.transformers import NativeSession
from hildanext.errors import DecodeError

pytest.importorskip("llguidance")
TEMPLATE = """{%- if tools %}<|im_start|>system
Tools:
{%- for tool in tools %}
{{ tool.function | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
{%- if not loop.first or message.content %}{{ '\n' }}{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TURNS: Any = [{"role": "user", "content": "Write a story about Lily and a fox."}]
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "required": ["at", "in"], "additionalProperties": False,
    "properties": {"at": {"type": "string", "maxLength": 6}, "in": {"enum": ["C", "F"]}}}}}  # fmt: skip
TIME: Any = {
    "type": "function",
    "function": {
        "name": "time",
        "parameters": {
            "type": "object",
            "required": ["zone"],
            "additionalProperties": False,
            "properties": {"zone": {"enum": [1, 2]}},
        },
    },
}
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, TIME)}


class Person(BaseModel):
    """What a client asks for."""

    name: str
    age: int


@pytest.fixture(scope="module")
def model() -> Any:
    made = hildanext.load("tiny")
    made.tokenizer.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def url(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = config_in(tmp_path_factory.mktemp("project"))
    session = NativeSession("transformers", model.loaded, config.model_copy(update={"model": model.config.model}))
    with live_server(config, session) as (address, _):
        wait_ready(address)
        yield address


@pytest.fixture(scope="module")
def name(url: str) -> str:
    return str(httpx.get(f"{url}/v1/models").json()["data"][0]["id"])


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def asked(name: str, **fields: Any) -> Any:
    return {"model": name, "messages": TURNS, "max_tokens": 90, "temperature": 1.0, "seed": 3, **fields}


@pytest.mark.parametrize(("choice", "names"), [
    ("required", {"weather", "time"}), ({"type": "function", "function": {"name": "time"}}, {"time"}),
])  # fmt: skip
def test_a_call_that_must_be_made_keeps_to_its_schema(
    client: openai.OpenAI, name: str, choice: Any, names: set[str]
) -> None:
    fields = asked(name, tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False)
    reply = client.chat.completions.create(**fields).choices[0]
    assert reply.finish_reason == "tool_calls" and reply.message.content is None
    assert reply.message.tool_calls and len(reply.message.tool_calls) == 1
    call: Any = reply.message.tool_calls[0]
    assert call.function.name in names and fits(call.function.arguments, SCHEMAS[call.function.name])
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**fields, stream=True)]
    deltas = [delta for chunk in chunks for delta in chunk.delta.tool_calls or []]
    assert deltas[0].function.name == call.function.name and deltas[0].id and deltas[0].type == "function"
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls" and not any(chunk.delta.content for chunk in chunks)


def test_several_calls_have_indices_and_ids_of_their_own(client: openai.OpenAI, name: str) -> None:
    for seed in range(4):
        fields = asked(name, tools=[TIME], tool_choice="required", seed=seed)
        calls: Any = client.chat.completions.create(**fields).choices[0].message.tool_calls
        assert calls and all(fits(call.function.arguments, SCHEMAS["time"]) for call in calls)
        assert len({call.id for call in calls}) == len(calls)
        if len(calls) > 1:
            stream = client.chat.completions.create(**fields, stream=True)
            found = [delta for chunk in stream for delta in chunk.choices[0].delta.tool_calls or []]
            assert {delta.index for delta in found} == set(range(len(calls)))
            return


def test_a_reply_that_may_call_and_does_not_is_text(client: openai.OpenAI, name: str) -> None:
    fields = asked(name, tools=[WEATHER], max_tokens=24, temperature=0.0)
    reply = client.chat.completions.create(**fields).choices[0]
    assert reply.message.content and reply.message.tool_calls is None and reply.finish_reason in ("length", "stop")
    chunks = list(client.chat.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == reply.message.content
    hidden = client.chat.completions.create(**asked(name, tools=[WEATHER], tool_choice="none", max_tokens=4))
    plain = client.chat.completions.create(**asked(name, max_tokens=4))
    assert hidden.usage and plain.usage and hidden.usage.prompt_tokens == plain.usage.prompt_tokens


def test_calls_and_their_results_go_back_into_the_conversation(client: openai.OpenAI, name: str, model: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": '{"zone": 3}'}}
    history: Any = [
        *TURNS, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]  # fmt: skip
    reply = client.chat.completions.create(**asked(name, messages=history, tools=[TIME], max_tokens=4))
    turns = [
        *TURNS, {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "time", "arguments": {"zone": 3}}}]},
        {"role": "tool", "content": "noon"},
    ]  # fmt: skip
    text = model.tokenizer.apply_chat_template(turns, tools=[TIME], tokenize=False, add_generation_prompt=True)
    assert reply.usage and reply.usage.prompt_tokens == len(model.tokenizer(text)["input_ids"])
    broken = [{"role": "assistant", "tool_calls": [{**call, "function": {"name": "time", "arguments": "{"}}]}]
    with pytest.raises(openai.UnprocessableEntityError, match="arguments"):
        client.chat.completions.create(**asked(name, messages=[*TURNS, *broken]))


@pytest.mark.parametrize(("fields", "words"), [
    ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, "time"),
    ({"tools": None, "tool_choice": "required"}, "without tools"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
      "tool_choice": "required"}, "not"),
    ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "give one of the two"),
])  # fmt: skip
def test_choices_that_are_none_are_refused(client: openai.OpenAI, name: str, fields: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(**asked(name, **{"tools": [WEATHER], **fields}))


def test_a_model_without_tools_says_so() -> None:
    tokenizer = hildanext.load("tiny").tokenizer
    with pytest.raises(DecodeError, match="shows no tools|takes none"):
        with_tools(Request.of(messages=tuple(TURNS), tools=[TIME]), tokenizer)


def test_the_form_of_calls_is_found_in_the_template(model: Any) -> None:
    form = ToolForm.of(model.tokenizer)
    assert form == ToolForm("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "arguments")


@pytest.mark.parametrize("size", [1, 3, 7, 400])
def test_a_reply_is_read_alike_however_it_comes(size: int) -> None:
    form = ToolForm("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "arguments")
    text = (
        'I look <b> it up.\n<tool_call>\n{"name": "time", "arguments": {"zone": 3, "x": "}"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    )
    stream, pieces = ToolStream(form), list[CallDelta]()
    for start in range(0, len(text), size):
        pieces += stream.push(text[start : start + size], start + size >= len(text))
    assert stream.calls == [["time", '{"zone": 3, "x": "}"}'], ["weather", "{}"]]
    assert stream.content == "I look <b> it up."
    assert "".join(piece.content for piece in pieces) == stream.content
    assert "".join(piece.arguments for piece in pieces if piece.index == 0) == '{"zone": 3, "x": "}"}'
    for other in ("no call <tool", "<tool_call>\nhello", 'a {"name": 3}'):
        stream = ToolStream(form)
        for at in range(0, len(other), size):
            stream.push(other[at : at + size], at + size >= len(other))
        assert (stream.content, stream.calls) == (other, [])
    bare = ToolStream(ToolForm("", "; ", "", "parameters"))
    told = bare.push('{"name": "time", "parameters": {"zone": 1}}', True)
    assert bare.calls == [["time", '{"zone": 1}']] and told[0].name == "time" and bare.content == ""


def test_a_schema_and_an_object_are_kept_to_by_the_client_package(client: openai.OpenAI, name: str) -> None:
    parsed = client.chat.completions.parse(**asked(name, response_format=Person))
    person = parsed.choices[0].message.parsed
    assert isinstance(person, Person) and parsed.choices[0].finish_reason == "stop"
    extra: Any = parsed.model_extra
    under = extra["hildanext"]["grammar"]
    assert under["tokens"] == parsed.usage.completion_tokens and 0 < under["forwards"] <= under["tokens"]
    reply = client.chat.completions.create(**asked(name, response_format={"type": "json_object"}, max_tokens=50))
    assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)
    assert client.chat.completions.create(**asked(name, response_format={"type": "text"}, max_tokens=3)).choices
    stream = client.chat.completions.create(
        **asked(name, response_format={"type": "json_object"}, max_tokens=50), stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream) == reply.choices[0].message.content


def test_what_a_format_cannot_hold_is_refused_by_name(client: openai.OpenAI, name: str, url: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match="response_format: .*uniqueItems") as found:
        client.chat.completions.create(**asked(name, response_format=form))
    assert found.value.param == "response_format"
    with pytest.raises(openai.BadRequestError, match="max_tokens: 3 leave no room") as short:
        client.chat.completions.create(**asked(name, response_format={"type": "json_schema", "json_schema": {
            "name": "a", "schema": Person.model_json_schema()}}, max_tokens=3))  # fmt: skip
    assert short.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="grammar: regex"):
        client.completions.create(model=name, prompt="a", extra_body={"grammar": "regex:[a-"})
    text = client.completions.create(model=name, prompt="a", extra_body={"grammar": "regex:[0-9]{4}"}).choices[0].text
    assert len(text) == 4 and text.isdigit()
    body = {"prompt": "One day", "grammar": {"type": "regex", "text": "(a|b){3}"}, "max_new_tokens": 9}
    reply = httpx.post(f"{url}/generate", json=body).json()
    assert set(reply["text"]) <= {"a", "b"} and reply["metrics"]["grammar"]["tokens"] == reply["metrics"]["tokens"]
    assert httpx.get(f"{url}/health").json()["status"] == "ready"
