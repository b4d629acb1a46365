# Text from committed tokens: no half characters, no text after a stop string, however the tokens arrive.
# Entry points: the tests; the oracle decodes everything at once.
# Tokens are bytes of UTF-8 here, so that characters are split between pieces.
"""Incremental text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hildanext.data.tokenizers import load_tokenizer
from hildanext.decoding.text import TextStream


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")


def pieces(data: bytes, source: random.Random) -> list[list[int]]:
    cuts = sorted(source.sample(range(1, len(data)), min(5, len(data) - 1)))
    return [list(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def run(text: str, stops: tuple[str, ...], seed: int) -> tuple[TextStream, list[str]]:
    stream, deltas = TextStream(Bytes(), [], stops), []
    parts = pieces(text.encode(), random.Random(seed))
    for index, part in enumerate(parts):
        deltas.append(stream.push(part, last=index == len(parts) - 1))
    return stream, deltas


@pytest.mark.parametrize("seed", range(10))
def test_deltas_add_up_and_never_hold_half_a_character(seed: int) -> None:
    text = "naïve — 日本語 🙂 done"
    stream, deltas = run(text, (), seed)
    assert "".join(deltas) == text == stream.text
    assert not any("\ufffd" in delta for delta in deltas)


@pytest.mark.parametrize("seed", range(10))
def test_nothing_of_a_stop_string_or_after_it_is_ever_shown(seed: int) -> None:
    text = "first line\n\nUser: more\n\nUser: again"
    stream, deltas = run(text, ("\n\nUser:", "zzz"), seed)
    assert "".join(deltas) == "first line" == stream.text and stream.stopped
    shown = ""
    for delta in deltas:
        shown += delta
        assert "first line".startswith(shown)
    assert bytes(stream.ids).decode() == "first line"
    assert stream.push(list(b"late")) == ""


@pytest.mark.parametrize("seed", range(5))
def test_tokens_count_as_settled_only_with_their_text(seed: int) -> None:
    text, shown = "one two three four", 0
    stream, source = TextStream(Bytes(), [], ("two f", "e t")), random.Random(seed)
    for part in pieces(text.encode(), source):
        stream.push(part)
        assert stream.settled == len(stream.text) >= shown
        shown = stream.settled
    assert stream.text == "on" and stream.settled == 2


@pytest.mark.parametrize("folder", ["stories260k-hf", "qwen3-tokenizer"])
def test_pieces_keep_the_space_before_a_word(assets: Path, folder: str) -> None:
    tokenizer = load_tokenizer(str(assets / folder))
    prompt, text = tokenizer("Once upon")["input_ids"], " a time, she said"
    ids = tokenizer("Once upon" + text)["input_ids"][len(prompt) :]
    assert "".join(TextStream(tokenizer, prompt).piece(token) for token in ids) == text


def test_a_partial_stop_string_at_the_end_is_text_after_all() -> None:
    stream, deltas = run("value: a\n", ("\n\n",), 0)
    assert "".join(deltas) == "value: a\n" and not stream.stopped


def test_end_tokens_are_ids_but_not_text() -> None:
    stream = TextStream(Bytes(), list(b"prompt"), (), frozenset({65}))
    assert stream.push(list(b"bcA"), last=True) == "bc" and stream.ids == list(b"bcA")
