# A chat through the tokenizer's own template: which text is whose, and what ends a turn.
# Entry points: written(chat, tokenizer, last_only, tools), opening(messages, tokenizer), Part, end_of_turn, Ending.
# Words are held: the template sees place-holders, with the white space and the thinking tags around them in place, so
# spans are exact, it can trim and move thoughts as it likes, and a word can never become a control token.
"""Chat templates."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from hildanext.errors import DataError, first_line

Chat = Sequence[Mapping[str, Any]]
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
HOLDER = "\ue000{}\ue001"
HOLDERS = re.compile("\ue000(\\d+)\ue001")
THINK = ("<think>", "</think>")
TAGS = re.compile("(</?think>)")
TOLD = re.compile("(<tool_response>)(.+)(</tool_response>)", re.DOTALL)
SHOWN = ("role", "name", "tool_calls", "tool_call_id")
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatRefused(DataError):
    """A chat that the template cannot write; tokenize drops and counts it."""


class Part(NamedTuple):
    """Consecutive text of a chat. held: somebody's words, free of control tokens; closes: follows a reply, so that its
    first end-of-turn token is learned where `learn` says so; message: index of the message, -1 where there is none."""

    text: str
    held: bool
    learn: bool
    closes: bool = False
    message: int = -1


class Ending(NamedTuple):
    """The token that ends a turn. written: the template itself writes it after every reply."""

    id: int
    text: str
    written: bool


class _Slot(NamedTuple):
    message: int
    thought: bool
    text: str


def template_hash(tokenizer: Any) -> str:
    """SHA-256 of the chat template; of an empty text where there is none. Trailing white space does not count."""
    template = getattr(tokenizer, "chat_template", None) or ""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.strip().encode()).hexdigest()


def end_of_turn(tokenizer: Any) -> Ending:
    """What ends a reply, found by rendering a chat of two turns: the first added token that follows the last reply, or
    every earlier one; the tokenizer's eos where the template has none. DataError where there is no eos either."""
    return _ending(tokenizer, template_hash(tokenizer))


@lru_cache(maxsize=8)
def _ending(tokenizer: Any, template: str) -> Ending:
    probe = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}] * 2
    texts = _split(_rendered(_held(probe, tokenizer)[0], tokenizer))[0]
    named = {token for text, token in tokenizer.get_added_vocab().items() if text.strip()}
    added = named | set(tokenizer.all_special_ids) | {tokenizer.eos_token_id}
    first, between, after = ([t for t in _encoded(texts[i], tokenizer) if t in added] for i in (0, 2, 4))
    found = after[0] if after else between[0] if between and between[0] not in first else tokenizer.eos_token_id
    if found is None:
        raise DataError(f"{tokenizer.name_or_path}: neither the chat template nor an eos_token ends a turn; set one")
    written = found in after and found in between
    return Ending(int(found), str(tokenizer.convert_ids_to_tokens(int(found))), written)


def _encoded(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def written(chat: Chat, tokenizer: Any, last_only: bool = False, tools: Sequence[Any] | None = None) -> list[Part]:
    """The parts of a chat that ends with a reply. Learned are the words of the replies (or the last), their thoughts
    as far as the template shows them, tool calls and what closes a turn. ChatRefused where the template fails."""
    _no_control_tokens(chat, tokenizer, tools)
    asked = {"tools": list(tools)} if tools else {}
    held, slots = _held(chat, tokenizer)
    texts, numbers = _split(_rendered(held, tokenizer, **asked))
    _complete(numbers, slots, chat)
    words = _as_trimmed(chat, tokenizer, slots, texts, asked)
    parts, before = list[Part](), -1
    for text, number in zip(texts, [*numbers, None], strict=True):
        until, done, owner = len(chat) if number is None else slots[number].message, 0, before
        for reply in range(before + 1, until):
            if chat[reply]["role"] == "assistant":
                cut = _start(text, chat[:reply], tokenizer, asked, (True, False))
                parts += _closing(text[done:cut], chat, owner, last_only)
                done, owner = cut, reply
        if number is None:
            parts += _closing(text[done:], chat, owner, last_only)
            continue
        learned = _learned(until, chat, last_only)
        if until == before:
            parts.append(Part(text, False, learned, message=until))
        else:
            thought = slots[number].thought
            cut = _start(text, chat[:until], tokenizer, asked, (True,)) if thought else len(text)
            parts += [*_closing(text[done:cut], chat, owner, last_only), Part(text[cut:], False, learned)]
        parts.append(Part(words[number], True, learned, message=until))
        before = until
    _calls_shown(parts, chat)
    return [part for part in parts if part.text or part.closes]


def opening(messages: Chat, tokenizer: Any, thinking: bool = False, tools: Sequence[Any] | None = None) -> list[Part]:
    """The parts of everything before the next reply, as `written` puts them before it: before its words, or with
    `thinking` before its thought, where the template leaves that to the model; tools: what the reply may call."""
    if not thinking:
        asked = [*messages, {"role": "assistant", "content": "A"}]
        return [part for part in written(asked, tokenizer, True, tools) if part.message != len(messages)]
    _no_control_tokens(messages, tokenizer, tools)
    switch: dict[str, Any] = {"add_generation_prompt": True, "enable_thinking": True}
    switch |= {"tools": list(tools)} if tools else {}
    held, slots = _held(messages, tokenizer)
    texts, numbers = _split(_rendered(held, tokenizer, **switch))
    _complete(numbers, slots, messages)
    words = _as_trimmed(messages, tokenizer, slots, texts, switch)
    parts, before = list[Part](), -1
    for text, number in zip(texts, [*numbers, None], strict=True):
        inside = number is not None and slots[number].message == before
        parts += [Part(text, False, False)] if inside else _closing(text, messages, before, True)
        if number is not None:
            before = slots[number].message
            parts.append(Part(words[number], True, False, message=before))
    return [part for part in parts if part.text or part.closes]


def _closing(text: str, chat: Chat, reply: int, last_only: bool) -> list[Part]:
    if reply >= 0 and chat[reply]["role"] == "assistant":
        return [Part(text, False, _learned(reply, chat, last_only), True, reply)]
    return [Part(text, False, False)]


def _learned(number: int, chat: Chat, last_only: bool) -> bool:
    wanted = chat[number].get("learn") is not False and (not last_only or number == len(chat) - 1)
    return chat[number]["role"] == "assistant" and wanted


def _held(chat: Chat, tokenizer: Any, edges: bool = False) -> tuple[list[dict[str, Any]], list[_Slot]]:
    slots, held, name = list[_Slot](), list[dict[str, Any]](), None

    def hold(message: int, text: str, thought: bool = False) -> str:
        slots.append(_Slot(message, thought, text))
        lead, trail = _edges(text) if edges and text.strip() else ("", "")
        return f"{lead}{HOLDER.format(len(slots) - 1)}{trail}"

    for index, message in enumerate(chat):
        shown = {key: message[key] for key in SHOWN if message.get(key)}
        content, lead = str(message.get("content") or ""), ""
        if reason := str(message.get("reasoning_content") or ""):
            name = _reasoning_name(tokenizer) if name is None else name
            thought = hold(index, reason, True)
            shown |= {name: thought} if name else {}
            lead = "" if name else f"<think>\n{thought}\n</think>\n\n"
        elif message["role"] == "assistant" and THINK[1] in content:
            inside = THINK[0] not in content.split(THINK[1])[0]
            for piece in TAGS.split(content):
                left, right = _edges(piece)
                holds = piece.strip() and piece not in THINK
                lead += f"{left}{hold(index, piece.strip(), inside)}{right}" if holds else piece
                inside = piece == THINK[0] if piece in THINK else inside
            content = ""
        elif message["role"] == "user" and (told := TOLD.fullmatch(content)):
            lead, content = told[1] + hold(index, told[2]) + told[3], ""
        empty = message["role"] != "assistant" or lead or message.get("tool_calls")
        held.append({**shown, "content": lead + (content if empty and not content.strip() else hold(index, content))})
    return held, slots


def _edges(text: str) -> tuple[str, str]:
    lead = text[: len(text) - len(text.lstrip())]
    return lead, text[len(text.rstrip()) :] if text.strip() else ""


def _reasoning_name(tokenizer: Any) -> str:
    for name in REASONING:
        chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", name: HOLDER.format(0)}]
        if HOLDER.format(0) in _rendered(chat, tokenizer):
            return name
    return ""


def _rendered(held: Chat, tokenizer: Any, **asked: Any) -> str:
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    try:
        return str(tokenizer.apply_chat_template(list(held), tokenize=False, chat_template=template, **asked))
    except Exception as error:  # a template is a program: whatever it raises refuses this chat
        roles = ", ".join(str(message["role"]) for message in held)
        raise ChatRefused(
            f"chat: the template refuses roles {roles} ({first_line(error)}); change them or drop the row"
        ) from error


def _split(text: str) -> tuple[list[str], list[int]]:
    parts = HOLDERS.split(text)
    return parts[0::2], [int(number) for number in parts[1::2]]


def _complete(numbers: Sequence[int], slots: Sequence[_Slot], chat: Chat) -> None:
    missing = [slots[number] for number in range(len(slots)) if number not in numbers]
    if list(numbers) != sorted(set(numbers)) or any(not slot.thought for slot in missing):
        shown = [slots[number].message for number in numbers]
        raise ChatRefused(f"chat: the template shows messages {shown} of {len(chat)}; expected each once, in order")
    if any(slot.message == len(chat) - 1 for slot in missing):
        raise ChatRefused("chat: the template leaves out the thought of the last reply; take it out of the row")


def _as_trimmed(
    chat: Chat, tokenizer: Any, slots: Sequence[_Slot], texts: Sequence[str], asked: Mapping[str, Any]
) -> list[str]:
    words = [slot.text for slot in slots]
    if all(text == text.strip() for text in words):
        return words
    around, numbers = _split(_rendered(_held(chat, tokenizer, edges=True)[0], tokenizer, **asked))
    if len(around) != len(texts):
        raise ChatRefused("chat: the template shows other messages where they begin with white space; strip them")
    leads, trails, previous = dict[int, str](), dict[int, str](), -1
    for wide, bare, number in zip(around, texts, [*numbers, -1], strict=True):
        ends = _edges(words[previous])[1] if previous >= 0 else ""
        starts = _edges(words[number])[0] if number >= 0 and words[number].strip() else ""
        trails[previous], leads[number] = _kept(wide, bare, ends, starts)
        previous = number
    return [
        leads[number] + word.strip() + trails[number] if number in leads and word.strip() else word
        for number, word in enumerate(words)
    ]


def _kept(wide: str, bare: str, ends: str, starts: str) -> tuple[str, str]:
    for trail in (ends[:count] for count in range(len(ends), -1, -1)):
        for lead in (starts[count:] for count in range(len(starts) + 1)):
            if trail + bare + lead == wide:
                return trail, lead
    raise ChatRefused("chat: the template changes white space in a way that cannot be followed; strip the messages")


def _start(text: str, before: Chat, tokenizer: Any, asked: Mapping[str, Any], thinking: Sequence[bool]) -> int:
    if not before and len(thinking) == 1:
        return len(text)
    held = _held(before, tokenizer)[0]
    prompts = [_rendered(held, tokenizer, **asked, add_generation_prompt=True, enable_thinking=on) for on in thinking]
    tails = [_split(prompt)[0][-1] for prompt in prompts]
    if prompts[0] == _rendered(held, tokenizer, **asked):
        said = [*held, {"role": "assistant", "content": HOLDER.format(0)}]
        tails = [os.path.commonprefix([text, _split(_rendered(said, tokenizer, **asked))[0][-2]])]
    fits = [len(tail) for tail in tails if text.startswith(tail)]
    if not fits and len(thinking) > 1:
        raise ChatRefused("chat: the template shows no place where a reply without words begins")
    return max(fits, default=len(text))


def _no_control_tokens(chat: Chat, tokenizer: Any, tools: Sequence[Any] | None) -> None:
    calls = [message["tool_calls"] for message in chat if message.get("tool_calls")]
    if not calls and not tools:
        return
    text = json.dumps([calls, tools], ensure_ascii=False, default=str)
    found = next((token for token in tokenizer.all_special_tokens if token in text), None)
    if found:
        raise ChatRefused(f"chat: a tool or tool call holds the control token {found}; change it or drop the row")


def _calls_shown(parts: Sequence[Part], chat: Chat) -> None:
    for index, message in enumerate(chat):
        names = [str(call.get("function", call).get("name", "")) for call in message.get("tool_calls") or ()]
        text = "".join(part.text for part in parts if part.message == index and part.closes)
        if not all(name in text for name in names):
            raise ChatRefused(
                "chat: the template does not show tool calls; give the tokenizer of a model that has them"
            )
