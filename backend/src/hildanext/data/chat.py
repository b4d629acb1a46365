# Chats -> token ids and the positions that are learned: each assistant message with its end-of-turn token.
# Entry points: render(messages, tokenizer, turns, tools), prompt_ids, generation_prompt, fit, each_turn.
# template.py says which text is whose; here it becomes ids. What the template writes before the reply (Qwen3's empty
# <think> too) belongs to the prompt, here and in generation; a thought is learned with its reply.
"""Chat rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from hildanext.data.document import Message
from hildanext.data.template import ChatRefused, Part, end_of_turn, opening, written
from hildanext.data.template_time import within
from hildanext.data.tokenizers import begun, encode_texts

Turns = Literal["all", "last"]


class Rendered(NamedTuple):
    """ids [n] and, for each, whether it is learned."""

    ids: list[int]
    learn: list[bool]


def render(
    messages: Sequence[Message], tokenizer: Any, turns: Turns = "all", tools: Sequence[Any] | None = None
) -> Rendered:
    """Ids of a chat up to its last learned reply; learn covers the assistant contents and the end-of-turn token after
    each, of all turns or the last. What the template writes after the last end of turn is left out: visible, it would
    tell the denoiser where the reply ends; that of a last reply which is cut off too, since it does not end there.
    ChatRefused where the template refuses the chat."""
    chat = _until_last_reply(messages)
    parts = written(chat, tokenizer, turns == "last", tools)
    return _ids(parts[:-1] if cut_off(chat) else parts, tokenizer)


def cut_off(messages: Sequence[Message]) -> bool:
    """Whether the last learned reply says `finished: false`: its words stop where somebody's patience did."""
    replies = _replies(messages)
    return bool(replies) and messages[replies[-1]].get("finished") is False


def prompt_ids(
    tokenizer: Any,
    text: str | None,
    messages: Sequence[Mapping[str, Any]] | None,
    start: Sequence[int] | None = None,
    thinking: bool = False,
    tools: Sequence[Any] | None = None,
) -> list[int]:
    """Ids of what a reply follows: those of a chat up to its reply, else of a text as training rows begin one, with
    `start` (None: what the tokenizer puts there) and nothing behind it. The only way from a request to ids: the child,
    the AR baseline and the harness are asked with the same ones."""
    if messages is None:
        return begun(list(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenizer, start)
    return generation_prompt(messages, tokenizer, thinking, tools)


def generation_prompt(
    messages: Sequence[Mapping[str, Any]], tokenizer: Any, thinking: bool = False, tools: Sequence[Any] | None = None
) -> list[int]:
    """Ids of everything before the reply, exactly as render() puts them before an assistant message; with `thinking`
    as it puts them before one that begins with a thought."""
    with within():
        parts = opening(messages, tokenizer, thinking, tools)
    return _ids(parts, tokenizer, reply=False).ids


def _ids(parts: Sequence[Part], tokenizer: Any, reply: bool = True) -> Rendered:
    end, ids, learn = end_of_turn(tokenizer), list[int](), list[bool]()
    held = iter(encode_texts(tokenizer, [part.text for part in parts if part.held]))
    for number, part in enumerate(parts):
        found = next(held) if part.held else list(tokenizer.encode(part.text, add_special_tokens=False))
        learned = len(found)
        if part.closes:
            found = found if end.id in found else [end.id, *found]
            learned = found.index(end.id) + 1
            found = found[:learned] if reply and number == len(parts) - 1 else found
        ids += found
        learn += [part.learn] * learned + [False] * (len(found) - learned)
    return Rendered(ids, learn)


def _replies(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant" and message.get("learn", True)]


def _until_last_reply(messages: Sequence[Message]) -> Sequence[Message]:
    replies = _replies(messages)
    if not replies:
        raise ChatRefused("chat: no assistant message, nothing to learn; expected at least one")
    return messages[: replies[-1] + 1]


def each_turn(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """The chat cut after each assistant message: one chat per reply, with all that came before it."""
    return [messages[: index + 1] for index in _replies(messages)]


OverLength = Literal["drop", "truncate_left_turns", "truncate_response"]


def fit(
    messages: Sequence[Message], tokenizer: Any, window: int, turns: Turns, policy: OverLength, tools: Any = None
) -> Rendered | None:
    """The rendered chat in at most `window` tokens, or None. truncate_left_turns: the oldest messages after the system
    message go, a user message stays first; truncate_response: the last tokens go, where some learned ones remain."""
    rendered = render(messages, tokenizer, turns, tools)
    if len(rendered.ids) <= window:
        return rendered
    if policy == "truncate_response":
        cut = Rendered(rendered.ids[:window], rendered.learn[:window])
        return cut if any(cut.learn) else None
    while policy == "truncate_left_turns" and (shorter := _without_oldest(messages)) is not None:
        messages = shorter
        rendered = render(messages, tokenizer, turns, tools)
        if len(rendered.ids) <= window:
            return rendered
    return None


def _without_oldest(messages: Sequence[Message]) -> Sequence[Message] | None:
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    rest = messages[len(system) :]
    starts = [index for index, message in enumerate(rest) if index and message["role"] == "user"]
    kept = [rest[index:] for index in starts if _replies(rest[index:])]
    return [*system, *kept[0]] if kept else None
