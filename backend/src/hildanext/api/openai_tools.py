# Tools in OpenAI's shapes: what a request offers, calls in a conversation, calls of a reply, whole and as deltas.
# Entry points: Tool, ToolChoice, Call (bodies), chosen_tool, message_calls, call_delta.
# What a reply says is read by the decoder (decoding/tools.py); here it gets its form and the ids of calls.
"""Tool calls for OpenAI clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hildanext.api.schemas import StrictBody
from hildanext.decoding.request import CallDelta, ToolCall

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(StrictBody):
    """A function that may be called."""

    name: Name
    description: str | None = Field(None, max_length=20_000)
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of its arguments, an object")
    strict: bool | None = Field(None, description="accepted: a call that must be made always keeps to the schema")


class Tool(StrictBody):
    """A tool; functions are known."""

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """As chat templates know it."""
        own = self.function
        shown = {"name": own.name, "description": own.description, "parameters": own.parameters or {"type": "object"}}
        return {"type": "function", "function": {key: value for key, value in shown.items() if value is not None}}


class Named(StrictBody):
    """A name."""

    name: Name


class ToolChoice(StrictBody):
    """The one tool that must be called."""

    type: Literal["function"]
    function: Named


class Called(StrictBody):
    """A function with its arguments."""

    name: Name
    arguments: str = Field(description="JSON text")


class Call(StrictBody):
    """A call of an earlier reply."""

    id: str = Field(max_length=200)
    type: Literal["function"] = "function"
    index: int | None = None
    function: Called

    @model_validator(mode="after")
    def _arguments_are_json(self) -> Call:
        self.arguments()
        return self

    def arguments(self) -> Any:
        """Read from their text."""
        try:
            return json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            raise ValueError("arguments: no JSON text") from None

    def plain(self) -> dict[str, Any]:
        """As chat templates know it."""
        return {
            "id": self.id, "type": "function",
            "function": {"name": self.function.name, "arguments": self.arguments()},
        }  # fmt: skip


def chosen_tool(choice: str | ToolChoice | None) -> str:
    """A request's tool_choice."""
    return choice.function.name if isinstance(choice, ToolChoice) else choice or "auto"


def call_id(number: str, index: int, place: int) -> str:
    """The id of a call: of the reply, the choice, the place among its calls."""
    return f"call_{number.partition('-')[2]}{index}{place:02d}"


def message_calls(calls: Sequence[ToolCall], number: str, index: int) -> list[dict[str, Any]]:
    """`tool_calls` of a message."""
    return [
        {
            "id": call_id(number, index, place), "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for place, call in enumerate(calls)
    ]  # fmt: skip


def call_delta(piece: CallDelta, number: str, index: int) -> dict[str, Any]:
    """The `delta` of one piece of a reply."""
    if piece.index is None:
        return {"content": piece.content}
    if not piece.name:
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.arguments}}]}
    head = {"index": piece.index, "id": call_id(number, index, piece.index), "type": "function"}
    return {"tool_calls": [head | {"function": {"name": piece.name, "arguments": ""}}]}
