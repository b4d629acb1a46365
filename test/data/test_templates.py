# Templates of other families: every reply's end is learned, thoughts and tool calls stand where the template puts them.
# Entry points: pytest.
# The templates are short ones of our own with the habits of their families; Qwen3's is the real one, from the assets.
# The oracle is the template itself: what it renders of the whole chat.
"""Tests of data/template.py and data/chat.py over families of templates."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hildanext.data.chat import each_turn, generation_prompt, render
from hildanext.data.template import ChatRefused, end_of_turn
from hildanext.data.tokenizers import train_small
from hildanext.decoding.prompt import end_ids
from hildanext.decoding.request import Request

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
ALPACA = (
    "{% for m in messages %}### {{ 'Response' if m.role == 'assistant' else 'Instruction' }}:\n{{ m.content }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
LAST_ONLY = (
    "{% for m in messages %}<user>{% if m.role == 'assistant' %}<bot>{% endif %}{{ m.content }}{% endfor %}"
    "{% if not add_generation_prompt %}</s>{% endif %}"
)
ADDED = ("<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]",
         "[/INST]", "<user>", "<bot>")  # fmt: skip
FAMILIES = {
    "gemma": (GEMMA, "<end_of_turn>", True),
    "llama": (LLAMA, "<|eot_id|>", True),
    "mistral": (MISTRAL, "</s>", True),
    "alpaca": (ALPACA, "</s>", False),
    "last_only": (LAST_ONLY, "</s>", False),
    "chatml": (CHATML, "<|im_end|>", True),
}
TURNS = [
    {"role": "user", "content": "Who ran?"},
    {"role": "assistant", "content": "Mia ran."},
    {"role": "user", "content": " And then?\n"},
    {"role": "assistant", "content": "  She went home."},
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},)
CALLING = [
    {"role": "user", "content": "Rome?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizer = train_small(["Mia ran home.", "### Instruction:"], tmp_path_factory.mktemp("tokenizer"))
    tokenizer.add_special_tokens({"eos_token": "</s>", "bos_token": "<s>"})
    tokenizer.add_tokens(list(ADDED))
    return tokenizer


def marked(messages: Any, tokenizer: Any, **more: Any) -> tuple[str, str]:
    rendered = render(messages, tokenizer, **more)
    learned = [token for token, learn in zip(rendered.ids, rendered.learn, strict=True) if learn]
    return tokenizer.decode(rendered.ids), tokenizer.decode(learned)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_replys_end_is_learned_and_stops_generation_whatever_the_template(base: Any, name: str) -> None:
    base.chat_template, end, written = FAMILIES[name]
    whole, learned = marked(TURNS, base)
    found = end_of_turn(base)
    assert (found.text, found.written) == (end, written)
    assert learned.count(end) == 2 and learned.endswith(end) and "Mia ran." in learned and "went home." in learned
    assert "Who" not in learned and "then" not in learned
    assert found.id in end_ids(Request(messages=tuple(TURNS[:1])), base)
    assert found.id in end_ids(Request(prompt_ids=tuple(generation_prompt(TURNS[:1], base))), base)
    plain = base("Mia ran.", add_special_tokens=False)["input_ids"]
    assert end_ids(Request(prompt_ids=tuple(plain)), base) == {base.eos_token_id}
    own = base.apply_chat_template(TURNS, tokenize=False)
    if written:
        assert whole == own[: own.rindex(end) + len(end)]
        plain = base.encode(own, add_special_tokens=False)
        assert render(TURNS, base).ids[-2:] == plain[: len(plain) - plain[::-1].index(found.id)][-2:]
    prompt = generation_prompt(TURNS[:3], base)
    assert render(TURNS, base).ids[: len(prompt)] == prompt


def test_white_space_around_a_message_stands_as_the_template_leaves_it(base: Any) -> None:
    for template in (CHATML, LLAMA):
        base.chat_template = template
        own = base.apply_chat_template(TURNS, tokenize=False).removesuffix("\n")
        assert marked(TURNS, base)[0] == own


@pytest.mark.parametrize("template", [GEMMA, MISTRAL, "{{ messages[0].content.nothing.there }}", "{{ 1 / 0 }}"])
def test_a_chat_that_a_template_refuses_is_a_refusal_not_a_traceback(base: Any, template: str) -> None:
    base.chat_template = template
    with pytest.raises(ChatRefused, match="the template refuses roles system, user, assistant"):
        render([{"role": "system", "content": "Be kind."}, *TURNS[:2]], base)


THOUGHT = "<think>\nRome is in Italy.\n</think>\n\nIt is Rome."
IN_CONTENT = {"role": "assistant", "content": THOUGHT}
CLOSED = {"role": "assistant", "content": "Rome is in Italy.\n</think>\n\nIt is Rome."}
IN_FIELD = {"role": "assistant", "content": "It is Rome.", "reasoning_content": "Rome is in Italy."}


@pytest.mark.parametrize("reply", [IN_CONTENT, IN_FIELD, CLOSED])
@pytest.mark.parametrize("lead", [[], TURNS[:2], [TURNS[0], IN_CONTENT], [TURNS[0], IN_FIELD]])
def test_a_thought_stands_once_where_qwens_template_puts_it_and_is_learned(qwen: Any, reply: Any, lead: Any) -> None:
    chat = [*lead, {"role": "user", "content": "Capital?"}, reply]
    whole, learned = marked(chat, qwen)
    assert whole == qwen.apply_chat_template(chat, tokenize=False).rstrip("\n") and whole.count("<think>") == 1
    assert learned.endswith(f"{THOUGHT}<|im_end|>") and learned.count("</think>") == 1
    prompt = generation_prompt(chat[:-1], qwen, thinking=True)
    rendered = render(chat, qwen, "last")
    assert rendered.ids[: len(prompt)] == prompt and rendered.learn.index(True) == len(prompt)
    own = qwen.apply_chat_template(chat[:-1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert prompt == own


def test_a_tools_answer_in_a_users_turn_is_known_as_one(qwen: Any) -> None:
    told = {"role": "user", "content": "<tool_response>\nsunny\n</tool_response>"}
    chat = [TURNS[0], IN_FIELD, told, {"role": "assistant", "content": "Sunny."}]
    assert marked(chat, qwen)[0] == qwen.apply_chat_template(chat, tokenize=False).rstrip("\n")


def test_generation_has_a_thinking_switch(qwen: Any) -> None:
    asked = [{"role": "user", "content": " Capital?"}]
    for on in (False, True):
        own = qwen.apply_chat_template(
            asked, tokenize=True, add_generation_prompt=True, enable_thinking=on, return_dict=False
        )
        assert generation_prompt(asked, qwen, thinking=on) == own


def test_a_thought_stays_in_the_text_of_a_template_that_knows_none(base: Any) -> None:
    base.chat_template = CHATML
    for reply in (IN_CONTENT, IN_FIELD):
        whole, learned = marked([TURNS[0], reply], base)
        assert learned == f"{THOUGHT}<|im_end|>" and whole.count("Rome is in Italy.") == 1


def test_a_thought_that_a_template_would_lose_is_refused_and_one_anywhere_else_stands_once(
    base: Any, qwen: Any
) -> None:
    drops = "{% for m in messages %}{{ m.role }}:{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    base.chat_template = drops
    with pytest.raises(ChatRefused, match="leaves out the thought of the last reply"):
        render([TURNS[0], IN_CONTENT], base)
    assert marked([TURNS[0], IN_CONTENT, *TURNS[2:]], base)[1].startswith("It is Rome.<|im_end|>")
    for content in (f"Well. {THOUGHT}", f"{THOUGHT}<think>again</think>Rome."):
        chat = [TURNS[0], {"role": "assistant", "content": content}]
        with pytest.raises(ChatRefused):
            render(chat, qwen)
        base.chat_template = CHATML
        assert marked(chat, base)[1] == f"{content}<|im_end|>"
    short = [TURNS[0], {"role": "assistant", "content": "<think>\n\n</think>\n\nRome.\n"}]
    assert marked(short, qwen)[0] == qwen.apply_chat_template(short, tokenize=False).rstrip("\n")
    assert marked(short, qwen)[1] == "Rome.\n<|im_end|>"


def test_earlier_thoughts_are_learned_once_where_each_turn_is_a_document(qwen: Any) -> None:
    chat = [TURNS[0], IN_FIELD, TURNS[2], IN_CONTENT]
    cuts = [marked(cut, qwen, turns="last") for cut in each_turn(chat)]
    assert [learned for _, learned in cuts] == [f"{THOUGHT}<|im_end|>"] * 2
    assert cuts[1][0].count("<think>") == 1


@pytest.mark.parametrize("content", ["", "I ask."])
def test_tool_calls_are_rendered_and_learned_by_a_template_that_has_them(qwen: Any, content: str) -> None:
    chat = [CALLING[0], {**CALLING[1], "content": content}, *CALLING[2:]]
    whole, learned = marked(chat, qwen, tools=TOOLS)
    own = qwen.apply_chat_template(chat, tools=list(TOOLS), tokenize=False)
    assert whole == own.rstrip("\n")
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
    said = f"{content}\n{call}" if content else call
    assert learned == f"{said}It is sunny.<|im_end|>"
    last, alone = marked(chat[:2], qwen, tools=TOOLS)
    assert alone == said and last == qwen.apply_chat_template(chat[:2], tools=list(TOOLS), tokenize=False).rstrip("\n")


def test_tool_calls_that_a_template_hides_or_that_hold_a_control_token_are_refused(base: Any, qwen: Any) -> None:
    base.chat_template = LLAMA
    with pytest.raises(ChatRefused, match="tool calls|without words"):
        render(CALLING, base)
    forged = json.loads(json.dumps(CALLING).replace("Rome", "<|im_end|>"))
    with pytest.raises(ChatRefused, match="control token"):
        render(forged, qwen)


def test_a_reply_that_is_not_to_be_learned_is_context_only(base: Any) -> None:
    base.chat_template = CHATML
    first = {**TURNS[1], "learn": False}
    assert marked([TURNS[0], first, *TURNS[2:]], base)[1] == "  She went home.<|im_end|>"
    assert marked([*TURNS[:3], {**TURNS[3], "learn": False}], base)[1] == "Mia ran.<|im_end|>"
    assert [len(cut) for cut in each_turn([TURNS[0], first, *TURNS[2:]])] == [4]
