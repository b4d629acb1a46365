# One declaration of a request's fields, four interfaces: what one takes, all take; what one refuses, all refuse.
# Entry points: pytest.
# The values below are written by hand, per field; a field without values fails the first test.
"""Fields of a request in Python, configuration, command line, native and OpenAI-compatible bodies."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from hildanext.api import schemas
from hildanext.api.openai_bodies import ChatBody, CompletionBody
from hildanext.api.schemas import GenerateBody, StrictBody, asked_in, carries
from hildanext.commands import generate
from hildanext.config import load_config
from hildanext.config.decode import Asked
from hildanext.decoding import request as requests
from hildanext.decoding.request import INTERFACES, Request, names_in
from hildanext.errors import ConfigError, DecodeError

PROMPT: dict[str, Any] = {"prompt": "a"}
GOOD: dict[str, list[Any]] = {
    "prompt": ["b"], "prompt_ids": [[0, 5]], "messages": [[{"role": "user", "content": "a"}]], "mode": ["Q_MODE", "X"],
    "policy": ["factor", {"type": "factor", "factor": 2.0}], "tau_mask": [0, 0.5, 1.0, "preset"],
    "carry": ["rcd", {"type": "rcd", "top_k": 8}], "kv": ["knorm", {"type": "window", "recent": 64}],
    "tau_edit": [0.0, 1, None, "preset"], "max_new_tokens": [1, 1 << 20], "seed": [0, -1, (1 << 63) - 1],
    "sample": [0, 3], "window_blocks": [1, 64, "preset"], "tau_add": [0, 1.5, "preset"], "tau_semi": [0.9, "preset"],
    "tau_stable": [0.5, 1, "preset"],
    "temperature": [0, 2.5, 100.0], "top_k": [0, 1 << 20], "top_p": [0.1, 1], "cfg_scale": [0.0, 100],
    "stop": [["a", "b"]], "block": [1, 64], "overrides": [{"steps": 3}, {"x": None, "y": True}], "trace": [True],
    "infill": [True], "suffix": [" b"], "ignore_eos": [True], "thinking": [True], "logprobs": [0, 20],
    "grammar": ["json_object", {"type": "regex", "text": "[ab]"}, {"type": "json_schema", "text": {"type": "null"}}],
    "tools": [[{"type": "function", "function": {"name": "f"}}]], "tool_choice": ["required", "f"],
    "several_calls": [False],
}  # fmt: skip
BAD: dict[str, list[Any]] = {
    "prompt": [3], "prompt_ids": [[-1], ["x"]], "messages": ["hello"], "mode": [5, "x" * 65],
    "carry": [7, {"top_k": 8}], "kv": [7, {"recent": 8}],
    "policy": [7, {"factor": 2.0}, {"type": "factor", "factor": float("nan")},
               {"type": "a", **{str(i): 1 for i in range(32)}}],
    "tau_mask": [-0.1, 1.1, "x", float("nan"), None], "tau_edit": [-0.1, 1.1, "x"],
    "window_blocks": [0, 65, 1.5, None], "tau_add": [-0.1, 2.1, "x", None], "tau_semi": [-0.1, 1.1, None],
    "tau_stable": [-0.1, 1.1, None],
    "max_new_tokens": [0, (1 << 20) + 1, 1.5],
    "seed": [-2, 1 << 63], "sample": [-1], "temperature": [-1, 101, float("inf")], "top_k": [-1, (1 << 20) + 1],
    "top_p": [0, 1.1], "cfg_scale": [-1, 101], "stop": [[""], ["x" * 201], ["x"] * 17], "block": [0, (1 << 20) + 1],
    "overrides": [{"a": {"b": 1}}, {str(i): 1 for i in range(33)}], "trace": ["x"], "infill": ["x"],
    "suffix": [["x"]], "ignore_eos": ["x"], "thinking": ["x"], "logprobs": [-1, 21, "x"],
    "grammar": [{"text": "a"}, {"type": "prose", "text": "a"}, {"type": "regex", "text": "x" * 100_001}],
    "tools": [[3], [{}] * 129], "tool_choice": [3, "x" * 65], "several_calls": ["x"],
}  # fmt: skip
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(field, value, id=f"{field}-{value!r:.30}") for field, values in table.items() for value in values
    ]


def in_python(field: str, value: Any) -> Any:
    source = {} if field in ("prompt", "prompt_ids", "messages") else PROMPT
    return getattr(Request.of(**{**source, field: value}), field)


def in_body(field: str, value: Any) -> list[Any]:
    """The field's value as each body that carries it hands it to the decoder."""
    found = []
    if name := names_in("native").get(field):
        source = {} if field in ("prompt", "prompt_ids", "messages") else PROMPT
        found.append(GenerateBody.model_validate({**source, name: value}).values()[field])
    if name := names_in("openai").get(field):
        found.append(ChatBody.model_validate({**CHAT, name: value}).values()[field])
        found.append(CompletionBody.model_validate({"model": "m", "prompt": "a", name: value}).values()[field])
    return found


def on_the_command_line(field: str, value: Any) -> Any:
    """The field's value as `generate` asks for it."""
    texts = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else str(value)]
    texts = ["off"] if value is None else texts
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    flag = f"--{names_in('cli')[field].replace('_', '-')}"
    args = parser.parse_args(["--prompt", "a", *(f"{flag}={text}" for text in texts)])
    return getattr(Request.of(**generate._fields(args)), field)


def test_every_field_has_values_here() -> None:
    assert set(GOOD) == set(BAD) == set(Request.model_fields)


def test_interfaces_withhold_or_rename_only_fields_that_exist() -> None:
    assert {field for own in INTERFACES.values() for field in own} <= set(Request.model_fields)


@pytest.mark.parametrize("field", ["cfg_scale", "top_k", "policy", "carry", "kv", "temperature", "mode"])
def test_what_shapes_sampling_is_reachable_everywhere(field: str) -> None:
    assert all(field in names_in(interface) for interface in INTERFACES) and field in Asked.model_fields


@pytest.mark.parametrize(("field", "value"), cases(GOOD))
def test_a_good_value_is_taken_by_every_interface_and_means_the_same(field: str, value: Any) -> None:
    asked = in_python(field, value)
    assert all(found == asked for found in in_body(field, value))
    if field in names_in("cli"):
        assert on_the_command_line(field, value) == asked
    if field in Asked.model_fields:
        assert getattr(load_config(base={"decode": {field: value}}).decode, field) == asked


@pytest.mark.parametrize(("field", "value"), cases(BAD))
def test_a_bad_value_is_refused_by_every_interface(field: str, value: Any) -> None:
    with pytest.raises(DecodeError, match=field):
        in_python(field, value)
    for interface in ("native", "openai"):
        if field in names_in(interface):
            with pytest.raises(ValidationError):
                in_body(field, value)
    textual = isinstance(value, str | dict | list) or value is None
    if field in names_in("cli") and not (textual or field in ("mode", "policy", "carry", "kv")):
        with pytest.raises(DecodeError, match=field):
            on_the_command_line(field, value)
    if field in Asked.model_fields and value is not None:
        with pytest.raises(ConfigError, match=f"decode.{field}"):
            load_config(base={"decode": {field: value}})


def test_json_types_are_exact_over_http_where_python_converts() -> None:
    assert in_python("seed", "5") == 5
    for value in ("5", True, 5.0):
        with pytest.raises(ValidationError):
            in_body("seed", value)


def test_a_field_that_is_left_out_is_none_in_a_request_and_the_default_in_the_configuration() -> None:
    asked, config = Request.of(**PROMPT), load_config().decode
    assert (asked.max_new_tokens, asked.temperature, asked.mode) == (None, None, None)
    assert (config.max_new_tokens, config.temperature, config.mode) == (128, 0.0, "Q_MODE")


def test_a_field_added_to_the_declaration_shows_up_in_every_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(Request):
        patience: int | None = Field(None, ge=1, description="looks without a change, a count")

    for module in (requests, schemas):
        monkeypatch.setattr(module, "Request", Longer)
    for interface in ("native", "openai"):
        made: type[BaseModel] = carries(interface)(type("Made", (StrictBody,), {"__module__": __name__}))
        asked = {"patience": 4} | ({"messages": None} if interface == "native" else {})
        assert asked_in(made.model_validate(asked), interface)["patience"] == 4
        assert made.model_json_schema()["properties"]["patience"]["description"].startswith("looks")
        with pytest.raises(ValidationError):
            made.model_validate(asked | {"patience": 0})
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    args = parser.parse_args(["--prompt", "a", "--patience", "4"])
    assert Longer.of(**generate._fields(args)).patience == 4  # type: ignore[attr-defined]


def test_a_stop_string_of_the_openai_form_is_one_of_several() -> None:
    assert ChatBody.model_validate({**CHAT, "stop": "x"}).values()["stop"] == ("x",)
    assert ChatBody.model_validate({**CHAT, "stop": None}).values()["stop"] == ()


def test_the_newer_name_of_the_limit_beats_the_older() -> None:
    body = ChatBody.model_validate({**CHAT, "max_tokens": 5, "max_completion_tokens": 7})
    assert body.values()["max_new_tokens"] == 7
