# What is asked of a decoder and what comes back: request, metrics, result; and how each interface names the fields.
# Entry points: Request (and Request.of, which turns mistakes into DecodeError), names_in, Metrics, Result.
# tau_mask, tau_edit: "preset" takes the mode's value; tau_edit None turns editing off, 0.0 edits freely.
# A field declared here or in config/decode.py appears in every interface, unless INTERFACES withholds it.
"""Records of one generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from hildanext.config.base import Section
from hildanext.config.decode import (
    MOST_SEED,
    MOST_TOKENS,
    Asked,
    CarryOver,
    Compression,
    Policy,
    Scalar,
    Tokens,
    unasked,
)
from hildanext.config.nearest import describe
from hildanext.errors import DecodeError
from hildanext.registry import Plugin

MOST_ALTERNATIVES, MOST_GRAMMAR, MOST_TOOLS = 20, 100_000, 128
MOST_TEXT = 4_000_000
FinishReason = Literal["eos", "stop", "length", "cancelled"]
TokenId = Annotated[int, Field(ge=0, le=MOST_SEED)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
INTERFACES: Mapping[str, Mapping[str, str | None]] = {
    "native": {"sample": None},
    "openai": {
        "prompt": None, "prompt_ids": None, "messages": None, "sample": None, "infill": None, "suffix": None,
        "trace": None, "logprobs": None, "tools": None, "tool_choice": None, "several_calls": None,
        "max_new_tokens": "max_tokens",
    },
    "cli": {
        "prompt": None, "prompt_ids": None, "messages": None, "sample": None, "block": None, "overrides": None,
        "trace": None, "infill": None, "suffix": None, "ignore_eos": None, "tools": None, "tool_choice": None,
        "several_calls": None,
    },
}  # fmt: skip
"""Where an interface gives a field another name, or (None) withholds it or gives it a form of its own."""


def _or_plugin(value: Any, section: ValidatorFunctionWrapHandler) -> Any:
    return value if isinstance(value, Plugin) else section(value)


def _or_kind(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    kind, _, text = value.partition(":")
    return {"type": kind, "text": text}


class Grammar(Section):
    """What a text must match. Written as `type` or `type:text` too."""

    type: Literal["json_schema", "json_object", "regex", "lark", "gbnf"] = Field(
        description="language it is written in"
    )
    text: Annotated[str, Field(max_length=MOST_GRAMMAR)] | dict[str, Any] = Field(
        "", description="the grammar; of json_schema the schema, as text or as an object; of json_object nothing"
    )


@unasked
class Request(Asked[None]):
    """One generation. Exactly one of prompt, prompt_ids, messages; a field at None takes the configuration's value."""

    prompt: str | None = Field(None, description="text to continue, or the text with gaps when infill is on")
    prompt_ids: (
        Annotated[tuple[TokenId, ...], Strict(False), Field(max_length=MOST_TOKENS)] | None
    ) = Field(None, description="token ids to continue")  # fmt: skip
    messages: tuple[Mapping[str, Any], ...] | None = Field(None, description="chat turns {role, content}")
    sample: int = Field(0, ge=0, description="index of this sample among repeats of one prompt")
    policy: Annotated[Policy | None, WrapValidator(_or_plugin)] = Field(
        None, description=f"{Asked.model_fields['policy'].description}; from Python also the policy itself"
    )
    carry: Annotated[CarryOver | None, WrapValidator(_or_plugin)] = Field(
        None, description=f"{Asked.model_fields['carry'].description}; from Python also the carry itself"
    )
    kv: Annotated[Compression | None, WrapValidator(_or_plugin)] = Field(
        None, description=f"{Asked.model_fields['kv'].description}; from Python also the compressor itself"
    )
    stop: Annotated[tuple[Stop, ...], Strict(False), Field(max_length=16)] = Field(
        (), description="strings that end the text; they are not part of it"
    )
    block: Tokens | None = Field(None, description="block size, tokens; else the model folder's")
    overrides: Annotated[dict[Annotated[str, Field(max_length=64)], Scalar], Field(max_length=32)] = Field(
        {}, description="single fields of the policy"
    )
    trace: bool = Field(False, description="keep the canvas after every step in the result")
    infill: bool = Field(False, description="fill the gaps marked <gap:N> in the prompt")
    suffix: Annotated[str, Field(max_length=MOST_TEXT)] | None = Field(
        None, description="text that follows what is written: max_new_tokens tokens stand between prompt and it"
    )
    ignore_eos: bool = Field(False, description="go on to max_new_tokens whatever is generated")
    grammar: Annotated[Grammar, BeforeValidator(_or_kind, json_schema_input_type=str | Grammar)] | None = Field(
        None, description="what the text must match: json_schema:TEXT, json_object, regex:TEXT, lark:TEXT or gbnf:TEXT"
    )
    tools: Annotated[tuple[dict[str, Any], ...], Strict(False), Field(max_length=MOST_TOOLS)] = Field(
        (), description="functions a chat's reply may call, as OpenAI's clients write them"
    )
    tool_choice: Annotated[str, Field(max_length=64)] = Field(
        "auto", description="auto: the reply may call; none: tools are not shown; required: it does; a name: that tool"
    )
    several_calls: bool = Field(True, description="a reply that must call may make more than one call")
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = Field(
        None, description="keep each token's step, edits and log-probability, and this many alternatives; null: none"
    )

    @property
    def called(self) -> tuple[dict[str, Any], ...]:
        """The tools that the template shows: none where none may be called."""
        return () if self.tool_choice == "none" else self.tools

    @classmethod
    def of(cls, **values: Any) -> Request:
        """The request, or DecodeError naming every unknown or impossible argument."""
        try:
            request = cls.model_validate(values)
        except ValidationError as error:
            raise DecodeError("request: " + "; ".join(describe(error, cls, ""))) from error
        given = [name for name in ("prompt", "prompt_ids", "messages") if getattr(request, name) is not None]
        if len(given) != 1:
            raise DecodeError(f"request: give exactly one of prompt, prompt_ids, messages, not {given or 'none'}")
        return request


def names_in(interface: str) -> dict[str, str]:
    """Field of a request -> its name in "native", "openai" or "cli", for those the interface takes as they are."""
    own = INTERFACES[interface]
    named = {field: own.get(field, field) for field in Request.model_fields}
    return {field: name for field, name in named.items() if name is not None}


@dataclass(frozen=True)
class Metrics:
    """What a generation cost. forwards: prefill and commits too; tokens: generated (of gaps, with infill);
    prompt_tokens: given; tuples have one entry per denoising step; mask_share in [0, 1]: of the open blocks after it;
    fused: forwards that also committed what was final (unfused, each costs one more); positions: computed from the
    first generated block on, per forward its mean width; cached_tokens: of the prompt, from earlier requests; grammar:
    tokens under one, forced ones, forwards, rate. None: not told. Source: docs/choosing-thresholds.md."""

    forwards: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    steps: int = 0
    tokens_per_forward: float = 0.0
    seconds: float = 0.0
    first_block_seconds: float = 0.0
    tokens_per_second: float = 0.0
    peak_bytes: int = 0
    policy: str = ""
    block: int = 0
    mask_share: tuple[float, ...] = ()
    edits_proposed: tuple[int, ...] = ()
    edits_applied: tuple[int, ...] = ()
    edits_reverted: tuple[int, ...] = ()
    fused: int | None = None
    positions: int | None = None
    tokens_per_forward_unfused: float | None = None
    positions_per_forward: float | None = None
    cached_tokens: int | None = None
    grammar: Mapping[str, float] | None = None


@dataclass(frozen=True)
class CallDelta:
    """A piece of a reply that may call tools: text that is said; or, of the call `index`, its name, which begins it, or
    further text of its arguments, JSON."""

    content: str = ""
    index: int | None = None
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class ToolCall:
    """A call. arguments: JSON text, cut where max_new_tokens cut the reply."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Alternative:
    """A token that might have been written instead. logprob: natural logarithm of its probability; raw: as that of
    TokenRecord."""

    id: int
    text: str
    logprob: float
    raw: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TokenRecord:
    """How a token came to stand. step: the denoising step that wrote it last, counted from 1; 0: given; edits: times it
    was written again after the first; logprob: of the token at that step under the model (guided where guidance is on)
    without [MASK], before temperature, cuts and a policy's bias; None: given; top: the likeliest there, best first;
    raw: its bytes where they are no whole characters. text is what it adds to the answer: "" for an end token."""

    id: int
    text: str
    step: int
    edits: int
    logprob: float | None
    top: tuple[Alternative, ...] = ()
    raw: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Result:
    """A finished generation. text holds nothing after EOS, a stop string or the limit; token_ids keep the first EOS.
    exact: every number came from an exact cache; preset: mode (null where it gave nothing), source, values used;
    seed: the one used, None where the engine draws nothing of ours; record: of each of token_ids, None where it was not
    asked for (logprobs); tool_calls, said: of a chat with tools, the calls and what else was said."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    metrics: Metrics
    engine: str = "transformers"
    reasons: tuple[str, ...] = ()
    exact: bool = True
    preset: Mapping[str, Any] | None = None
    trace: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    seed: int | None = None
    record: tuple[TokenRecord, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    said: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the trace."""
        return {name: value for name, value in asdict(self).items() if name != "trace"}
