# The record every source yields and every later step reads, and the record of a row that could not be read.
# Entry points: Document, BadRow, as_json, from_json.
# A document holds exactly one of text, messages (chat) or tokens (pre-tokenised ids). A message is role and content,
# where a row has them reasoning_content, tool_calls, name, tool_call_id, and learn (false: a reply only seen).
"""Documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """One training document. learn: of tokens, which are learned (None: all); tools: what a chat may call, JSON
    schemas; metadata: whatever the source knows, plain JSON."""

    id: str
    source: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    tokens: tuple[int, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    learn: tuple[bool, ...] | None = None
    tools: tuple[Any, ...] | None = None

    @property
    def is_chat(self) -> bool:
        """Whether it goes to the sft_* files."""
        return self.messages is not None

    def content(self) -> str:
        """What identifies it: the text, or messages or tokens as JSON."""
        if self.text is not None:
            return self.text
        held = self.messages if self.messages is not None else self.tokens
        more = self.learn if self.messages is None else self.tools
        return json.dumps(held if more is None else [held, more], ensure_ascii=False)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be a document: why, in which file, at which line (1 is the first). damaged: the file breaks off
    there, and how many rows are lost is not known."""

    reason: str
    file: str
    line: int
    damaged: bool = False


def as_json(document: Document) -> str:
    """One line of processed/<name>/*.jsonl."""
    held: dict[str, Any] = {"text": document.text, "messages": document.messages, "tokens": document.tokens}
    held["learn"] = None if document.learn is None else [int(learned) for learned in document.learn]
    held["tools"] = document.tools
    row: dict[str, Any] = {"id": document.id, "source": document.source}
    row |= {name: value for name, value in held.items() if value is not None}
    if document.metadata:
        row["metadata"] = dict(document.metadata)
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def from_json(line: str | bytes) -> Document:
    """The document of one line of processed/<name>/*.jsonl."""
    row = json.loads(line)
    messages, tokens, learn, tools = (row.get(name) for name in ("messages", "tokens", "learn", "tools"))
    return Document(
        id=row["id"],
        source=row["source"],
        text=row.get("text"),
        messages=None if messages is None else tuple(messages),
        tokens=None if tokens is None else tuple(tokens),
        metadata=row.get("metadata", {}),
        learn=None if learn is None else tuple(bool(learned) for learned in learn),
        tools=None if tools is None else tuple(tools),
    )
