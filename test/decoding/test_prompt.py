# From requests to canvases: chat templates, gaps, end tokens, and requests that cannot be prepared.
# Entry points: the tests; the real Qwen3 tokenizer and its template where the assets are there.
# A gap is written <gap:N>.
"""Preparation of requests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hildanext.config.decode import MOST_TOKENS
from hildanext.data.chat import render
from hildanext.data.tokenizers import load_tokenizer
from hildanext.decoding.prompt import Bounds, end_ids, prepare
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError

BOUNDS = Bounds(block=8, window=512, new=20, mask_id=151_669)


@pytest.fixture(scope="module")
def qwen(assets: Path) -> Any:
    return load_tokenizer(str(assets / "qwen3-tokenizer"))


def test_chat_turns_are_rendered_by_the_template_and_end_at_the_turn(qwen: Any) -> None:
    request = Request.of(messages=({"role": "user", "content": "Hello"},))
    prepared = prepare(request, qwen, BOUNDS)
    text = qwen.decode(list(prepared.prompt))
    assert text.startswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant")
    assert 151_645 in end_ids(request, qwen)
    assert prepared.blocks.limit == len(prepared.prompt) + 20
    assert (prepared.tokens[len(prepared.prompt) :] == BOUNDS.mask_id).all()


def test_infill_leaves_masks_exactly_in_the_gaps(qwen: Any) -> None:
    text = "def add(a, b):\n    return<gap:3>\n\nprint(<gap:2>)"
    prepared = prepare(Request.of(prompt=text, infill=True), qwen, BOUNDS)
    assert int(prepared.editable.sum()) == 5 and prepared.blocks.length == len(prepared.tokens)
    assert qwen.decode(prepared.tokens[~prepared.editable].tolist()) == text.replace("<gap:3>", "").replace(
        "<gap:2>", ""
    )


def test_the_space_before_a_gap_is_left_to_it_where_tokens_carry_spaces(qwen: Any) -> None:
    text = "One day the <gap:1> went home."
    prepared = prepare(Request.of(prompt=text, infill=True), qwen, BOUNDS)
    tokens = prepared.tokens.tolist()
    hole = tokens.index(BOUNDS.mask_id)
    whole = qwen("One day the cat went home.")["input_ids"]
    assert tokens[:hole] == whole[:hole] and tokens[hole + 1 :] == whole[hole + 1 :]


def test_the_space_before_a_gap_stays_where_every_letter_is_a_token() -> None:
    def letters(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    prepared = prepare(Request.of(prompt="1 + <gap:1> = 2", infill=True), letters, BOUNDS)
    assert prepared.tokens.tolist() == [*map(ord, "1 + "), BOUNDS.mask_id, *map(ord, " = 2")]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "no gap", "infill": True}, "0 gaps"),
        ({"prompt": "a <gap:0> b", "infill": True}, "N >= 1"),
        ({"prompt": "a <gap:2> b", "infill": True, "max_new_tokens": 4}, "own lengths"),
        ({"prompt_ids": (1, 2), "infill": True}, "needs a text prompt"),
        ({"prompt_ids": tuple(range(500)), "max_new_tokens": 13}, "ask for at most 12"),
        ({"prompt_ids": tuple(range(512))}, "the prompt has 512 and max_new_tokens comes on top; shorten it by 1"),
        ({"prompt": "a <gap:3> b"}, "<gap:3> marks a gap, and infill is off"),
        ({"prompt": "a <gap:513> b", "infill": True}, "more than the model's window of 512 tokens"),
        ({"prompt": "a" + "<gap:200>" * 3, "infill": True}, "more than the model's window of 512 tokens"),
        ({"prompt": "a <gap:200000000> b", "infill": True}, "write smaller ones"),
        ({"prompt": f"a <gap:{10**20}> b", "infill": True}, "write smaller ones"),
        ({"prompt": f"a <gap:{'9' * 5000}> b", "infill": True}, "write smaller ones"),
    ],
)
def test_requests_that_cannot_be_prepared_say_why(qwen: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        prepare(Request.of(**fields), qwen, BOUNDS)


def test_gaps_are_counted_before_anything_is_built(qwen: Any, monkeypatch: Any) -> None:
    def built(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("hildanext.decoding.prompt.prompt_ids", built)
    for window, gap in ((0, MOST_TOKENS + 1), (512, 513), (0, 10**20)):
        with pytest.raises(DecodeError, match="write smaller ones"):
            prepare(Request.of(prompt=f"a <gap:{gap}>", infill=True), qwen, replace(BOUNDS, window=window))


def test_a_mask_token_written_beside_the_gaps_is_refused(qwen: Any) -> None:
    mask = qwen.convert_tokens_to_ids("<|fim_pad|>")
    with pytest.raises(DecodeError, match="holds the mask token"):
        prepare(Request.of(prompt="a <|fim_pad|> b <gap:2>", infill=True), qwen, replace(BOUNDS, mask_id=mask))


@pytest.mark.parametrize("folder", ["qwen3-tokenizer", "stories260k-hf"])
def test_a_chat_prompt_is_what_training_rows_have_before_the_reply(assets: Path, folder: str) -> None:
    tokenizer = load_tokenizer(str(assets / folder))
    asked = ({"role": "user", "content": "Hi, who are you?"},)
    prompt = list(prepare(Request.of(messages=asked), tokenizer, BOUNDS).prompt)
    row = render([*asked, {"role": "assistant", "content": "A model."}], tokenizer)
    assert row.ids[: len(prompt)] == prompt
    assert not any(row.learn[: len(prompt)]) and row.learn[len(prompt)]
