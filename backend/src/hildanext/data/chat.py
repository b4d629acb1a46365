# Chats -> token ids and the positions that are learned: each assistant message with its end-of-turn token.
# Entry points: render(messages, tokenizer, turns), prompt_ids, generation_prompt, fit, PLAIN_TEMPLATE.
# The tokenizer's own template is used, PLAIN_TEMPLATE without one. Contents are put in by place-holders, so a span is
# exact whatever the template adds around it, and a content can never become a control token.
# What the template writes before the reply (Qwen3's empty <think> too) belongs to the prompt, here and in generation.
"""Chat rendering."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from hildanext.data.document import Message
from hildanext.data.template_time import within
from hildanext.data.tokenizers import begun, encode_texts
from hildanext.errors import DataError

Turns = Literal["all", "last"]
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
HOLDER = "\ue000{}\ue001"
HOLDERS = re.compile("\ue000(\\d+)\ue001")


class Rendered(NamedTuple):
    """ids [n] and, for each, whether it is learned."""

    ids: list[int]
    learn: list[bool]


def render(messages: Sequence[Mapping[str, str]], tokenizer: Any, turns: Turns = "all") -> Rendered:
    """Ids of a chat that ends with an assistant message; learn covers the assistant contents and the end-of-turn token
    after each, of all turns or the last. What the template writes after the last end of turn is left out: visible,
    it would tell the denoiser where the reply ends. DataError where the template refuses the chat."""
    chat = _until_last_reply(messages)
    pieces = _pieces(chat, tokenizer)
    encoded = encode_texts(tokenizer, [message["content"] for message in chat])
    ids, learn, previous = list[int](), list[bool](), -1
    for number, text in pieces:
        closing = previous >= 0 and chat[previous]["role"] == "assistant" and _learned(previous, chat, turns)
        found = tokenizer.encode(text, add_special_tokens=False)
        ends = _end_of_turn(found, tokenizer) if closing else 0
        last = number < 0
        found = found[: _end_of_turn(found, tokenizer)] if last else found
        ids += found
        learn += [True] * ends + [False] * (len(found) - ends)
        if not last:
            ids += encoded[number]
            learned = chat[number]["role"] == "assistant" and _learned(number, chat, turns)
            learn += [learned] * len(encoded[number])
        previous = number
    return Rendered(ids, learn)


def prompt_ids(
    tokenizer: Any, text: str | None, messages: Sequence[Mapping[str, Any]] | None, start: Sequence[int] | None = None
) -> list[int]:
    """Ids of what a reply follows: those of a chat up to its reply, else of a text as training rows begin one, with
    `start` (None: what the tokenizer puts there) and nothing behind it. The only way from a request to ids: the child,
    the AR baseline and the harness are asked with the same ones."""
    if messages is None:
        return begun(list(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenizer, start)
    turns = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in messages]
    return generation_prompt(turns, tokenizer)


def generation_prompt(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> list[int]:
    """Ids of everything before the reply, exactly as render() puts them before an assistant message."""
    asked = [*messages, {"role": "assistant", "content": ""}]
    encoded = encode_texts(tokenizer, [message["content"] for message in asked])
    ids: list[int] = []
    with within():
        pieces = _pieces(asked, tokenizer)
    for number, text in pieces:
        ids += tokenizer.encode(text, add_special_tokens=False)
        if number == len(asked) - 1:
            break
        ids += encoded[number]
    return ids


def _until_last_reply(messages: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
    replies = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not replies:
        raise DataError("chat: no assistant message, nothing to learn; expected at least one")
    return messages[: replies[-1] + 1]


def _learned(number: int, chat: Sequence[Mapping[str, str]], turns: Turns) -> bool:
    return turns == "all" or number == len(chat) - 1


def _pieces(chat: Sequence[Mapping[str, str]], tokenizer: Any) -> list[tuple[int, str]]:
    held = [{**message, "content": HOLDER.format(index)} for index, message in enumerate(chat)]
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(held, tokenize=False, chat_template=template)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in chat)
        raise DataError(f"chat: the template refuses roles {roles} ({error}); change them or drop the row") from error
    parts = HOLDERS.split(text)
    numbers = [int(number) for number in parts[1::2]]
    if numbers != list(range(len(chat))):
        raise DataError(f"chat: the template shows messages {numbers} of {len(chat)}; expected each once, in order")
    return list(zip([*numbers, -1], parts[0::2], strict=True))


def _end_of_turn(found: Sequence[int], tokenizer: Any) -> int:
    special = set(tokenizer.all_special_ids) | {tokenizer.eos_token_id}
    return next((index + 1 for index, token in enumerate(found) if token in special), 0)


def each_turn(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """The chat cut after each assistant message: one chat per reply, with all that came before it."""
    return [messages[: index + 1] for index, message in enumerate(messages) if message["role"] == "assistant"]


OverLength = Literal["drop", "truncate_left_turns", "truncate_response"]


def fit(messages: Sequence[Message], tokenizer: Any, window: int, turns: Turns, policy: OverLength) -> Rendered | None:
    """The rendered chat in at most `window` tokens, or None. truncate_left_turns: the oldest messages after the system
    message go, a user message stays first; truncate_response: the last tokens go, where some learned ones remain."""
    rendered = render(messages, tokenizer, turns)
    if len(rendered.ids) <= window:
        return rendered
    if policy == "truncate_response":
        cut = Rendered(rendered.ids[:window], rendered.learn[:window])
        return cut if any(cut.learn) else None
    while policy == "truncate_left_turns" and (shorter := _without_oldest(messages)) is not None:
        messages = shorter
        rendered = render(messages, tokenizer, turns)
        if len(rendered.ids) <= window:
            return rendered
    return None


def _without_oldest(messages: Sequence[Message]) -> Sequence[Message] | None:
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    rest = messages[len(system) :]
    starts = [index for index, message in enumerate(rest) if index and message["role"] == "user"]
    kept = [rest[index:] for index in starts if any(message["role"] == "assistant" for message in rest[index:])]
    return [*system, *kept[0]] if kept else None
