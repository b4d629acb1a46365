# Rows of JSON -> documents: which keys mean a chat, an instruction, a text or token ids.
# Entry points: FORMATS, detect(row), to_document. A format is found once per file and then required of its rows.
# Chat formats: messages (role/content), conversations (from/value), prompt/response, question/answer,
# instruction/input/output. Tool messages are kept as context.
"""Row formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hildanext.data.document import Document, Message

Row = Mapping[str, Any]
TEXT_FIELDS = ("text", "content", "story", "document", "body", "article")
TOKEN_FIELDS = ("input_ids", "token_ids", "tokens")
ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "chatgpt": "assistant", "system": "system", "tool": "tool", "function": "tool",
    "function_response": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip


class Unusable(Exception):
    """A row that is no document; the message is the reason that is counted."""


@dataclass(frozen=True)
class Format:
    """One shape of rows: the keys that show it and the function that reads it."""

    keys: tuple[str, ...]
    read: Callable[[Row], tuple[Message, ...]]


def _text(row: Row, key: str, required: bool = True) -> str:
    value = row.get(key)
    if value is None and not required:
        return ""
    if key not in row:
        raise Unusable(f"missing field {key!r}")
    if not isinstance(value, str):
        raise Unusable(f"field {key!r} is no text")
    if required and not value.strip():
        raise Unusable("empty")
    return value


def _turns(found: Any, role_key: str, text_key: str) -> tuple[Message, ...]:
    if not isinstance(found, list) or not found:
        raise Unusable("no messages")
    messages = []
    for turn in found:
        if not isinstance(turn, Mapping) or turn.get(role_key) not in ROLES:
            raise Unusable("unknown role")
        content = turn.get(text_key)
        if not isinstance(content, str):
            raise Unusable("a message is no text")
        messages.append({"role": ROLES[turn[role_key]], "content": content})
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise Unusable("no assistant message")
    return tuple(messages)


def _messages(row: Row) -> tuple[Message, ...]:
    return _turns(row.get("messages"), "role", "content")


def _conversations(row: Row) -> tuple[Message, ...]:
    turns = _turns(row.get("conversations"), "from", "value")
    system = _text(row, "system", required=False)
    return ({"role": "system", "content": system}, *turns) if system.strip() else turns


def _pair(ask: str, answer: str, row: Row) -> tuple[Message, ...]:
    system = _text(row, "system", required=False)
    asked = {"role": "user", "content": _text(row, ask)}
    told = {"role": "assistant", "content": _text(row, answer)}
    return ({"role": "system", "content": system}, asked, told) if system.strip() else (asked, told)


def _prompt_response(row: Row) -> tuple[Message, ...]:
    return _pair("prompt", "response", row)


def _prompt_completion(row: Row) -> tuple[Message, ...]:
    return _pair("prompt", "completion", row)


def _question_answer(row: Row) -> tuple[Message, ...]:
    return _pair("question", "answer", row)


def _instruction(row: Row) -> tuple[Message, ...]:
    given = _text(row, "input", required=False).strip()
    ask = _text(row, "instruction")
    return _pair("ask", "output", {**row, "ask": f"{ask}\n\n{given}" if given else ask})


FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), _messages),
    "conversations": Format(("conversations",), _conversations),
    "prompt_response": Format(("prompt", "response"), _prompt_response),
    "prompt_completion": Format(("prompt", "completion"), _prompt_completion),
    "question_answer": Format(("question", "answer"), _question_answer),
    "instruction": Format(("instruction", "output"), _instruction),
}


def detect(row: Row) -> str | None:
    """The name of a chat format, `text:<field>`, `tokens:<field>`, or None where the row shows none of them."""
    for name, form in FORMATS.items():
        if all(key in row for key in form.keys):
            return name
    text = next((f"text:{field}" for field in TEXT_FIELDS if field in row), None)
    return text or next((f"tokens:{field}" for field in TOKEN_FIELDS if isinstance(row.get(field), list)), None)


def to_document(row: Row, form: str, source: str, fallback_id: str) -> Document:
    """The document of a row in the format `detect` named. Raises Unusable with the reason."""
    identity = str(row.get("id") or fallback_id)
    metadata = _metadata(row)
    kind, _, field = form.partition(":")
    if kind == "text":
        return Document(identity, source, text=_text(row, field), metadata=metadata)
    if kind == "tokens":
        return Document(identity, source, tokens=_tokens(row, field), metadata=metadata)
    return Document(identity, source, messages=FORMATS[form].read(row), metadata=metadata)


def _tokens(row: Row, field: str) -> tuple[int, ...]:
    found = row.get(field)
    if not isinstance(found, list) or not all(type(token) is int for token in found):
        raise Unusable(f"field {field!r} is no list of token ids")
    if not found:
        raise Unusable("empty")
    return tuple(found)


def _metadata(row: Row) -> dict[str, Any]:
    found = dict(row["metadata"]) if isinstance(row.get("metadata"), Mapping) else {}
    own = {name: row[name] for name in ("language", "tokenizer_hash") if isinstance(row.get(name), str)}
    return found | own
