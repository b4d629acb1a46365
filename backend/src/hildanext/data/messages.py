# The turns of a chat as rows write them -> messages: role, content, thought, tool calls, whether a reply is learned.
# Entry points: turns_of(value), tools_of(row), is_turn(value), Unusable.
# Keys are told apart by what they hold: role|from and content|value under any name of the list, a list of turns, a dict
# of lists, either as a JSON string. `finished: false`: a reply that was cut off. What cannot be read makes the row
# unusable, with a reason.
"""Turns of a chat."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hildanext.data.document import Message

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "chatgpt": "assistant", "ai": "assistant", "function_call": "assistant",
    "tool_call": "assistant", "system": "system", "developer": "system", "tool": "tool", "function": "tool",
    "function_response": "tool", "tool_response": "tool", "tool_result": "tool", "observation": "tool",
    "ipython": "tool",
}  # fmt: skip
CALLS = ("function_call", "tool_call")
ROLE_KEYS = ("role", "from", "speaker")
TEXT_KEYS = ("content", "value", "text")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
NO_THOUGHT = re.compile(r"<think>\s*</think>")
FLAGS = ("weight", "train", "training", "loss", "learn")


class Unusable(Exception):
    """A row that is no document; the message is the reason that is counted."""


def is_turn(value: Any) -> bool:
    """Whether a value is one turn of a chat: an object that says whose it is."""
    return isinstance(value, Mapping) and any(key in value for key in ROLE_KEYS)


def turns_of(found: Any) -> tuple[Message, ...]:
    """The messages of a list of turns, a dict of lists or either as JSON text. Unusable with the reason."""
    found = _parsed(found) if isinstance(found, str) else found
    if isinstance(found, Mapping):
        columns = {key: value for key, value in found.items() if isinstance(value, list)}
        longest = max((len(value) for value in columns.values()), default=0)
        if not columns or any(len(value) != longest for value in columns.values()):
            raise Unusable("no messages")
        found = [{key: value[place] for key, value in columns.items()} for place in range(longest)]
    if not isinstance(found, list | tuple) or not found:
        raise Unusable("no messages")
    return tuple(_message(turn) for turn in found)


def tools_of(row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What a chat may call: the row's `tools` or `functions`, a list or JSON text of one; None where there are none."""
    found = next((row[key] for key in ("tools", "functions") if row.get(key)), None)
    found = _parsed(found) if isinstance(found, str) else found
    if found is None or found in ([], {}):
        return None
    listed = found if isinstance(found, list | tuple) else [found]
    if not all(isinstance(tool, Mapping) for tool in listed):
        raise Unusable("tools are no list of objects")
    return tuple(
        plain(tool) if "function" in tool else {"type": "function", "function": plain(tool)} for tool in listed
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unusable("messages or tools are text that is no JSON") from None


def _message(turn: Any) -> Message:
    role = next((turn[key] for key in ROLE_KEYS if turn.get(key)), None) if isinstance(turn, Mapping) else None
    name = role.strip().lower().replace("-", "_") if isinstance(role, str) else ""
    if name not in ROLES:
        raise Unusable("unknown role")
    message: Message = {"role": ROLES[name]}
    value = next((turn[key] for key in TEXT_KEYS if turn.get(key) is not None), None)
    calls = _calls(value) if name in CALLS else _calls(turn.get("tool_calls") or turn.get("function_call"))
    message["content"] = "" if name in CALLS or (value is None and calls) else _content(value, ROLES[name])
    if calls and ROLES[name] == "assistant":
        message |= {"tool_calls": calls, "content": message["content"] if message["content"].strip() else ""}
    reason = next((turn[key] for key in REASONING_KEYS if isinstance(turn.get(key), str) and turn[key].strip()), None)
    if reason is not None and ROLES[name] == "assistant":
        message["reasoning_content"] = reason
    message |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    if ROLES[name] == "assistant":
        return _reply(message, turn)
    return message


def _reply(message: Message, turn: Mapping[str, Any]) -> Message:
    if not NO_THOUGHT.sub("", message["content"]).strip() and "tool_calls" not in message:
        raise Unusable("an empty assistant message")
    for flag in FLAGS:
        if turn.get(flag) is None:
            continue
        if turn[flag] not in (0, 1):
            raise Unusable(f"{flag} of a message is neither 0 nor 1")
        if not turn[flag]:
            message["learn"] = False
    if turn.get("finished") not in (None, True, False):
        raise Unusable("finished of a message is neither true nor false")
    if turn.get("finished") is False:
        message["finished"] = False
    return message


def _content(value: Any, role: str) -> str:
    if isinstance(value, list) and all(isinstance(part, str | Mapping) for part in value) and value:
        return "".join(_part(part) for part in value)
    if role == "tool" and isinstance(value, Mapping):
        return json.dumps(plain(value), ensure_ascii=False)
    if not isinstance(value, str):
        raise Unusable("a message is no text")
    return value


def _part(part: str | Mapping[str, Any]) -> str:
    if isinstance(part, str):
        return part
    if part.get("type", "text") not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
        raise Unusable(f"a message holds {part.get('type', 'something')!s:.20} that is no text")
    return str(part["text"])


def _calls(found: Any) -> list[Any]:
    found = _parsed(found) if isinstance(found, str) and found.strip() else found
    listed = [found] if isinstance(found, Mapping) else list(found) if isinstance(found, list | tuple) else []
    return [_call(call) for call in listed]


def _call(call: Any) -> dict[str, Any]:
    inside = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inside, Mapping) or not isinstance(inside.get("name"), str) or not inside["name"]:
        raise Unusable("a tool call without a name")
    arguments = inside.get("arguments", inside.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise Unusable("arguments of a tool call are no JSON") from None
    named = {"id": str(call["id"])} if call.get("id") else {}
    return {**named, "type": "function", "function": {"name": inside["name"], "arguments": plain(arguments)}}


def plain(value: Any, depth: int = 50) -> Any:
    """The value as JSON can hold it: dates, decimals and the like as text, bytes as UTF-8 or hexadecimal. Unusable
    where it is nested deeper than `depth`."""
    if depth < 0:
        raise Unusable("metadata, tools or arguments nested too deeply")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth - 1) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return content.hex()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
