# One renderer of chats: training, the child, the AR baseline and the harness put the same ids before a reply.
# Entry points: pytest.
# The oracle is the text of Qwen3's chat format written out by hand, and the tokenizer's own encoding of it.
"""Tests of the prompts that generators are asked with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hildanext.config.decode import DecodeConfig
from hildanext.data.chat import render
from hildanext.data.tokenizers import load_tokenizer
from hildanext.decoding.prompt import Bounds, prepare
from hildanext.decoding.request import Request
from hildanext.measure.generation import ARGenerator
from hildanext.models.meta import HildaMeta

CHATS = {
    "no system turn": (
        ({"role": "user", "content": "Who met Lily?"},),
        "<|im_start|>user\nWho met Lily?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "a system turn": (
        ({"role": "system", "content": "Be short.\n"}, {"role": "user", "content": "\n\nHi"}),
        "<|im_start|>system\nBe short.\n<|im_end|>\n<|im_start|>user\n\n\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
}


@pytest.fixture(scope="module")
def qwen(assets: Path) -> Any:
    return load_tokenizer(assets / "qwen3-tokenizer")


@pytest.mark.parametrize("name", CHATS)
def test_child_and_baseline_are_asked_with_the_ids_that_training_puts_before_a_reply(name: str, qwen: Any) -> None:
    messages, text = CHATS[name]
    request = Request(messages=messages)
    child = prepare(request, qwen, Bounds(4, 0, 4, 151_669)).prompt
    baseline = ARGenerator(SimpleNamespace(tokenizer=qwen, meta=HildaMeta()), DecodeConfig()).prompt(request)
    trained = render([*messages, {"role": "assistant", "content": "Tom."}], qwen)
    assert list(child) == baseline == trained.ids[: trained.learn.index(True)]
    assert qwen.decode(child) == text


def test_child_and_baseline_are_asked_with_the_same_ids_for_a_text(qwen: Any) -> None:
    request = Request(prompt="One day, Tom")
    child = prepare(request, qwen, Bounds(4, 0, 4, 151_669)).prompt
    assert list(child) == ARGenerator(SimpleNamespace(tokenizer=qwen, meta=HildaMeta()), DecodeConfig()).prompt(request)
