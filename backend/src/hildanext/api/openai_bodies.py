# Bodies of the OpenAI-compatible routes: what is served, and what is named as not served.
# Entry points: OpenAIBody, CompletionBody, ChatBody, refuse_unsupported, refuse_grammar, NEUTRAL.
# A field OpenAI has and we have not is accepted only with the value that changes nothing.
"""OpenAI-compatible bodies."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from hildanext.api.gaps import Lengths, lengths_of
from hildanext.api.openai_tools import Call, Tool, ToolChoice, chosen_tool
from hildanext.api.replies import ApiError
from hildanext.api.schemas import StrictBody, asked_in, carries
from hildanext.config.decode import MOST_TOKENS, Tokens
from hildanext.decoding.grammar import checked
from hildanext.decoding.request import MOST_ALTERNATIVES, MOST_TOOLS, Grammar, Stop, TokenId
from hildanext.errors import DecodeError

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (None, False),
    "best_of": (None, 1), "presence_penalty": (None, 0), "frequency_penalty": (None, 0), "logit_bias": (None, {}),
    "functions": (None, []), "function_call": (None, "none"),
    "modalities": (None, ["text"]), "audio": (None,),
    "prediction": (None,), "reasoning_effort": (None, "none"), "verbosity": (None, "medium"),
    "store": (None, False), "service_tier": (None, "auto", "default"),
    "web_search_options": (None,),
}  # fmt: skip


def _as_list(value: Any) -> Any:
    if value == "":
        raise ValueError("an empty string ends nothing; leave it out")
    return [value] if isinstance(value, str) else value


Empty = Annotated[list[Any], Field(max_length=0)] | None
Stops = Annotated[
    Annotated[list[Stop], Field(max_length=16)] | None,
    BeforeValidator(_as_list, json_schema_input_type=Stop | Annotated[list[Stop], Field(max_length=16)] | None),
]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MOST_TOKENS)]


class StreamOptions(StrictBody):
    """What a stream carries besides text."""

    include_usage: bool = Field(False, description="send a last chunk with the token counts")
    include_obfuscation: bool | None = Field(None, description="accepted, not used")


class Part(StrictBody):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = Field(None, description="accepted, not used")


class ChatMessage(StrictBody):
    """One chat turn; content may be a list of text parts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(min_length=1, max_length=100)] | None = Field(
        None, description="what is said; null only of the assistant, who then said nothing"
    )
    tool_call_id: str | None = Field(None, max_length=200, description="the call whose result a turn of tool is")
    cache_control: dict[str, Any] | None = Field(None, description="accepted, not used")
    name: str | None = Field(None, max_length=64)
    refusal: None = None
    annotations: Empty = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Call], Field(max_length=128)] | None = None

    @model_validator(mode="after")
    def _said(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"content: a turn of {self.role} needs text")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls: a turn of {self.role} makes none")
        return self

    def turn(self) -> dict[str, Any]:
        """The turn as chat templates know it."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        called = {"tool_calls": [call.plain() for call in self.tool_calls]} if self.tool_calls else {}
        answered = {"tool_call_id": self.tool_call_id} if self.tool_call_id and self.role == "tool" else {}
        return {"role": "system" if self.role == "developer" else self.role, "content": text, **called, **answered}


class JsonSchema(StrictBody):
    """A schema by name."""

    name: str = Field("", max_length=64)
    description: str | None = Field(None, max_length=10_000, description="accepted, not used")
    schema_: dict[str, Any] = Field({}, alias="schema", description="what the reply must match")
    strict: bool | None = Field(None, description="accepted: a schema is always kept to")


class ResponseFormat(StrictBody):
    """text: whatever; json_object: some JSON object; json_schema: JSON that a schema describes."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description="with type json_schema")

    @model_validator(mode="after")
    def _schema_where_needed(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: goes with type json_schema, which needs it")
        return self

    def grammar(self) -> Grammar | None:
        """As a request has it; None for any text."""
        if self.json_schema is not None:
            return Grammar(type="json_schema", text=self.json_schema.schema_)
        return Grammar(type="json_object") if self.type == "json_object" else None


@carries("openai")
class OpenAIBody(StrictBody):
    """What both routes share. The fields of our request that OpenAI's do not have are for extra_body."""

    model: str = Field(max_length=400, description="a name from /v1/models")
    n: Annotated[int, Field(ge=1, le=128)] | None = Field(None, description="samples")
    stop: Stops = Field(None, description="strings that end the text")
    stream: bool | None = Field(None, description="server-sent events, ended by [DONE]")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=1000, description="accepted, not used")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="accepted, not used")
    prompt_cache_key: str | None = Field(None, max_length=1000, description="accepted, not used")
    safety_identifier: str | None = Field(None, max_length=1000, description="accepted, not used")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    store: bool | None = None
    service_tier: str | None = None

    def values(self) -> dict[str, Any]:
        """Fields of the decoder's request but for the prompt."""
        return asked_in(self, "openai") | {"stop": tuple(self.stop or ())}

    def tried(self) -> tuple[int, ...]:
        """Lengths that are tried where a gap is filled, tokens; none where text is continued."""
        return ()


class CompletionBody(OpenAIBody):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=64)]
    ) = Field(description="text, several texts, token ids, or several lists of them")
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = Field(
        None, description="the log-probability of each token and this many alternatives"
    )
    echo: bool | None = None
    suffix: str | None = Field(None, description="text that follows; what is written stands between prompt and it")
    lengths: Lengths | None = Field(
        None, description="beside suffix: lengths of the gap to try, tokens; null: twelve up to max_tokens"
    )
    best_of: int | None = None

    def values(self) -> dict[str, Any]:
        """Fields of the decoder's request but for the prompt."""
        return super().values() | {"logprobs": self.logprobs, "suffix": self.suffix or None}

    def tried(self) -> tuple[int, ...]:
        """Lengths that are tried where a gap is filled, tokens; none where text is continued."""
        return lengths_of(self.lengths, getattr(self, "max_tokens", None)) if self.suffix else ()

    def prompts(self) -> list[dict[str, Any]]:
        """One request's prompt field per prompt."""
        if isinstance(self.prompt, str):
            return [{"prompt": self.prompt}]
        if isinstance(self.prompt[0], int):
            return [{"prompt_ids": tuple(self.prompt)}]
        return [{"prompt": one} if isinstance(one, str) else {"prompt_ids": tuple(one)} for one in self.prompt]


class ChatBody(OpenAIBody):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_completion_tokens: Tokens | None = Field(None, description="the newer name of max_tokens, which it beats")
    logprobs: bool | None = Field(None, description="the log-probability of each token")
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = Field(
        None, description="alternatives of each token, with logprobs"
    )
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = Field(
        None, description="functions the reply may call, on models whose chat template shows tools"
    )
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = Field(
        None, description="whether the reply may, must not or must call; or the function that it must call"
    )
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: a reply that must call makes one call")
    response_format: ResponseFormat | None = Field(None, description="what the reply must match")
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    web_search_options: dict[str, Any] | None = None

    def values(self) -> dict[str, Any]:
        """Fields of the decoder's request but for the prompt."""
        newer: dict[str, Any] = {}
        if self.max_completion_tokens is not None:
            newer["max_new_tokens"] = self.max_completion_tokens
        newer["tools"] = tuple(tool.plain() for tool in self.tools or ())
        newer["tool_choice"] = chosen_tool(self.tool_choice) if newer["tools"] else "auto"
        newer["several_calls"] = self.parallel_tool_calls is not False
        if self.logprobs:
            newer["logprobs"] = self.top_logprobs or 0
        if self.response_format is not None and (grammar := self.response_format.grammar()) is not None:
            newer["grammar"] = grammar
        return super().values() | newer


def refuse_unsupported(body: OpenAIBody) -> None:
    """ApiError 400 naming the first field that is set to something this server does not do."""
    uncalled = {"functions"} if getattr(body, "function_call", None) == "none" else set()
    if getattr(body, "tool_choice", None) not in (None, "none", "auto") and not getattr(body, "tools", None):
        raise ApiError(400, "tool_choice: without tools; give tools", "tool_choice")
    if getattr(body, "lengths", None) and not getattr(body, "suffix", None):
        raise ApiError(400, "lengths: of a gap, and there is no suffix; give one, or leave lengths out", "lengths")
    for name, neutral in NEUTRAL.items():
        if name in uncalled:
            continue
        if getattr(body, name, None) not in neutral:
            raise ApiError(400, f"{name}: not supported by this server; leave it out", name)
    if getattr(body, "top_logprobs", None) and not body.values().get("logprobs"):
        raise ApiError(400, "top_logprobs: only with logprobs; set it to true", "top_logprobs")


async def refuse_grammar(body: OpenAIBody) -> None:
    """ApiError 400 for a grammar that cannot be served, in the name of the field that it came by."""
    grammar, form = body.values()["grammar"], getattr(body, "response_format", None)
    if grammar is None:
        return
    named = "grammar" if form is None or form.grammar() is None else "response_format"
    if named == "response_format" and getattr(body, "grammar", None) is not None:
        raise ApiError(400, "grammar: beside response_format; give one of the two", "grammar")
    try:
        await asyncio.to_thread(checked, grammar)
    except DecodeError as error:
        raise ApiError(400, f"{named}: {str(error).removeprefix('grammar: ')}", named) from error
