# Rows of JSON -> documents: which keys mean a chat, an instruction, a text or token ids.
# Entry points: FORMATS, detect(row), to_document, prompt_of, ACCEPTED.
# Every row shows its own format, so files may mix them. Chat formats: a list of turns (messages, conversations ...), or
# asked and told (prompt/completion, instruction/output ...), each side a text or turns. Preference rows are refused:
# learning a reply because it was written down would learn the bad ones too.
"""Row formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hildanext.data.document import Document, Message
from hildanext.data.messages import Unusable, plain, tools_of, turns_of

Row = Mapping[str, Any]
TEXT_FIELDS = ("text", "content", "story", "document", "body", "article")
TOKEN_FIELDS = ("input_ids", "token_ids", "tokens")
MARKS = ("loss_mask", "completion_mask", "assistant_masks", "assistant_mask")
SYSTEM_FIELDS = ("system", "system_prompt")
ACCEPTED = (
    "rows of JSON lines, JSON, CSV, Parquet or Arrow with text, messages, conversations, prompt/completion, "
    "question/answer, instruction/output or input_ids (docs/training.md)"
)
FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "conversation": ("conversation",),
    "dialogue": ("dialogue",),
    "chat": ("chat",),
    "prompt_response": ("prompt", "response"),
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
    "instruction": ("instruction", "output"),
    "instruction_response": ("instruction", "response"),
    "question_response": ("question", "response"),
    "query_response": ("query", "response"),
    "problem_solution": ("problem", "solution"),
    "input_output": ("input", "output"),
}
"""The keys that show a format: one that holds turns, or the side that asks and the side that is learned."""
TURNS = tuple(keys[0] for keys in FORMATS.values() if len(keys) == 1)
ASKING = ("prompt", "instruction", "question", "query", "problem", "input")
BELOW_TEXT = ("question_response", "query_response", "problem_solution", "input_output")


def detect(row: Row) -> str | None:
    """The name of a chat format, `text:<field>`, `tokens:<field>`, or None where the row shows none of them. Unusable
    for a preference or KTO row."""
    given = {key for key, value in row.items() if value is not None}
    filled = {key for key in given if row[key] != "" and row[key] != []}
    chat = _chat_format(filled)
    if {"chosen", "rejected"} <= given:
        raise Unusable("preference row (chosen, rejected): not for SFT unless the source's `format` names its chat")
    if chat and isinstance(row.get("label"), bool):
        raise Unusable("KTO row (label): not for SFT unless the source's `format` names its chat")
    if chat:
        return chat
    text = next((f"text:{field}" for field in TEXT_FIELDS if field in filled), None)
    tokens = next((f"tokens:{field}" for field in TOKEN_FIELDS if isinstance(row.get(field), list)), None)
    return text or tokens or _chat_format(given) or next((f"text:{key}" for key in TEXT_FIELDS if key in given), None)


def _chat_format(given: set[str]) -> str | None:
    known = (name for name in FORMATS if "text" not in given or name not in BELOW_TEXT)
    return next((name for name in known if given.issuperset(FORMATS[name])), None)


def to_document(row: Row, form: str, source: str, fallback_id: str) -> Document:
    """The document of a row in the format `detect` named. Raises Unusable with the reason."""
    identity = str(row.get("id") or fallback_id)
    metadata = _metadata(row)
    kind, _, field = form.partition(":")
    if kind == "text":
        return Document(identity, source, text=_text(row, field), metadata=metadata)
    if kind == "tokens":
        tokens, learn = _tokens(row, field)
        return Document(identity, source, tokens=tokens, metadata=metadata, learn=learn)
    if form not in FORMATS:
        raise Unusable(f"unknown format {form!r}, known are {', '.join(FORMATS)}")
    messages = _chat(row, FORMATS[form])
    return Document(identity, source, messages=messages, metadata=metadata, tools=tools_of(row))


def prompt_of(row: Row, field: str = "") -> tuple[Message, ...]:
    """The turns of a row up to where a reply belongs: a chat without the replies at its end, or what is asked, in
    `field` or in the first of TURNS and ASKING that says something. Replies before it are not learned. Unusable."""
    key = field or next((name for name in (*TURNS, *ASKING) if row.get(name)), "")
    if not key:
        raise Unusable(f"no prompt in any of {', '.join((*TURNS, *ASKING))}")
    if tools_of(row):
        raise Unusable("tools, which are not asked with")
    turns = list(turns_of(row[key]) if key in TURNS and key in row else _asked(row, key))
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns or turns[-1]["role"] == "system":
        raise Unusable("no user message")
    system = _optional(row, *SYSTEM_FIELDS)
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    return tuple({**turn, "learn": False} if turn["role"] == "assistant" else turn for turn in turns)


def _text(row: Row, key: str) -> str:
    if key not in row:
        raise Unusable(f"missing field {key!r}")
    value = row[key]
    if not isinstance(value, str):
        raise Unusable(f"field {key!r} is no text")
    if not value.strip():
        raise Unusable("empty")
    return value


def _optional(row: Row, *keys: str) -> str:
    found = next((row[key] for key in keys if row.get(key) is not None), "")
    if not isinstance(found, str):
        raise Unusable(f"field {keys[0]!r} is no text")
    return found if found.strip() else ""


def _chat(row: Row, keys: tuple[str, ...]) -> tuple[Message, ...]:
    missing = next((key for key in keys if key not in row), None)
    if missing:
        raise Unusable(f"missing field {missing!r}")
    turns = turns_of(row[keys[0]]) if len(keys) == 1 else (*_asked(row, keys[0]), *_told(row, keys[1]))
    system = _optional(row, *SYSTEM_FIELDS)
    if system and turns[0]["role"] != "system":
        turns = ({"role": "system", "content": system}, *turns)
    replies = [turn for turn in turns if turn["role"] == "assistant"]
    if not replies:
        raise Unusable("no assistant message")
    if not any(turn.get("learn", True) for turn in replies):
        raise Unusable("no reply is to be learned")
    return turns


def _asked(row: Row, key: str) -> tuple[Message, ...]:
    if _is_turns(row.get(key)):
        turns = turns_of(row[key])
        return tuple({**turn, "learn": False} if turn["role"] == "assistant" else turn for turn in turns)
    given = _optional(row, "input", "context").strip() if key == "instruction" else ""
    ask = _text(row, key)
    return (*_history(row.get("history")), {"role": "user", "content": f"{ask}\n\n{given}" if given else ask})


def _told(row: Row, key: str) -> tuple[Message, ...]:
    if _is_turns(row[key]):
        return turns_of(row[key] if not isinstance(row[key], Mapping) or _columns(row[key]) else [row[key]])
    reason = next((row[name] for name in ("reasoning_content", "reasoning", "thinking") if row.get(name)), None)
    told = {"role": "assistant", "content": _text(row, key)}
    return ({**told, "reasoning_content": reason} if isinstance(reason, str) else told,)


def _is_turns(value: Any) -> bool:
    return isinstance(value, list | tuple | Mapping)


def _columns(value: Mapping[str, Any]) -> bool:
    return any(isinstance(item, list) for key, item in value.items() if key in ("role", "from"))


def _history(found: Any) -> tuple[Message, ...]:
    if not found:
        return ()
    if not isinstance(found, list | tuple):
        raise Unusable("history is no list of turns")
    if isinstance(found[0], Mapping):
        return turns_of(found)
    turns: list[Message] = []
    for pair in found:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(t, str) and t for t in pair):
            raise Unusable("history is no list of (asked, told)")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return tuple(turns)


def _tokens(row: Row, field: str) -> tuple[tuple[int, ...], tuple[bool, ...] | None]:
    ids = _integers(row, field)
    if not ids:
        raise Unusable("empty")
    learn = [True] * len(ids)
    for name in ("labels", *MARKS):
        if row.get(name) is None:
            continue
        marks = _integers(row, name, len(ids))
        if name == "labels" and any(mark not in (-100, token) for mark, token in zip(marks, ids, strict=True)):
            raise Unusable("labels are neither -100 nor the token ids")
        kept = [mark != -100 if name == "labels" else mark != 0 for mark in marks]
        learn = [one and two for one, two in zip(learn, kept, strict=True)]
    real = _integers(row, "attention_mask", len(ids)) if row.get("attention_mask") is not None else [1] * len(ids)
    pairs = [(token, mark) for token, mark, seen in zip(ids, learn, real, strict=True) if seen]
    if not any(mark for _, mark in pairs):
        raise Unusable("no token is to be learned")
    tokens, learned = tuple(token for token, _ in pairs), tuple(mark for _, mark in pairs)
    return tokens, None if all(learned) else learned


def _integers(row: Row, field: str, length: int = -1) -> list[int]:
    found = row.get(field)
    if not isinstance(found, list) or not all(isinstance(n, int) and (length >= 0 or type(n) is int) for n in found):
        raise Unusable(f"field {field!r} is no list of token ids")
    if any(not -(2**63) <= token < 2**63 for token in found):
        raise Unusable(f"field {field!r} holds a number beyond 64 bits")
    if length >= 0 and len(found) != length:
        raise Unusable(f"field {field!r} has {len(found)} entries for {length} tokens")
    return found


def _metadata(row: Row) -> dict[str, Any]:
    found = dict(row["metadata"]) if isinstance(row.get("metadata"), Mapping) else {}
    own = {name: row[name] for name in ("language", "tokenizer_hash") if isinstance(row.get(name), str)}
    return {str(name): plain(value) for name, value in found.items()} | own
