# A sweep of odd chats over families of templates: the text is the template's own, every learned reply has its end.
# Entry points: pytest.
# The oracle is apply_chat_template over the whole chat; a chat may be refused, but never end in another error.
"""Sweep of data/template.py."""

from __future__ import annotations

import random
from typing import Any

import pytest
from data.test_templates import FAMILIES, base  # noqa: F401

from hildanext.data.chat import generation_prompt, render
from hildanext.data.template import ChatRefused, end_of_turn

TEXTS = [
    "", "  ", "\n", "a", " a ", "\n\na\n", "<think>", "</think>", "<think>\nx\n</think>\n\ny", "x<think>y",
    "hm</think>z", "<tool_response>z</tool_response>", "<|im_end|>", "\ue0000\ue001", "\U0001f436 \u00e9", "{{ x }}",
    "<think>a</think>",
]  # fmt: skip


def odd_chat(draw: random.Random) -> list[dict[str, Any]]:
    chat: list[dict[str, Any]] = []
    for number in range(draw.randint(1, 6)):
        roles = ("user", "assistant", "assistant", "system", "tool") if number else ("user", "user", "system")
        message: dict[str, Any] = {"role": draw.choice(roles), "content": draw.choice(TEXTS)}
        if message["role"] == "assistant":
            call = {"type": "function", "function": {"name": "fn", "arguments": {"a": draw.choice(["1", "b\nc"])}}}
            message |= {"tool_calls": [call] * draw.choice([1, 2])} if draw.random() < 0.2 else {}
            message |= {"learn": False} if draw.random() < 0.2 else {}
            message["content"] = message["content"] if message["content"].strip() or "tool_calls" in message else "ok"
        chat.append(message)
    return [*chat, {"role": "assistant", "content": "ok"}]


@pytest.mark.parametrize("name", ["qwen", *FAMILIES])
def test_what_is_rendered_is_the_templates_own_text_and_every_reply_ends(name: str, request: Any) -> None:
    tokenizer = request.getfixturevalue("qwen" if name == "qwen" else "base")
    if name != "qwen":
        tokenizer.chat_template = FAMILIES[name][0]
    draw, seen, end = random.Random(name), 0, end_of_turn(tokenizer)
    for chat in (odd_chat(draw) for _ in range(120)):
        try:
            rendered = render(chat, tokenizer)
        except ChatRefused:
            continue
        seen += 1
        learned = [token for token, learn in zip(rendered.ids, rendered.learn, strict=True) if learn]
        replies = [message for message in chat if message["role"] == "assistant" and message.get("learn", True)]
        assert learned.count(end.id) == len(replies) and rendered.ids[-1] == end.id and rendered.learn[-1], chat
        prompt = generation_prompt(chat[:-1], tokenizer)
        assert rendered.ids[: len(prompt)] == prompt, chat
        if end.written and name != "mistral":
            own = tokenizer.apply_chat_template(
                [{key: value for key, value in message.items() if key != "learn"} for message in chat], tokenize=False
            )
            assert own.startswith(tokenizer.decode(rendered.ids)), chat
    assert seen >= 12
