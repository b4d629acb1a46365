# Text between a prompt and a suffix: layout, what is shown, what the gap can see, and what is refused.
# Entry points: pytest.
# The oracle of a suffix request is the older way to write it: <gap:N> in one block that holds the whole text.
"""Tests of requests with a suffix."""

from __future__ import annotations

from typing import Any

import pytest

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Commit
from hildanext.decoding.prompt import Bounds, end_ids, prepare
from hildanext.decoding.request import Request, Result
from hildanext.errors import DecodeError
from hildanext.models.load import load_model
from hildanext.world import story

SAID = story("suffix:3")
BEFORE, MIDDLE = " ".join(SAID.sentences[:3]), f" {SAID.sentences[3]}"
AFTER = f" {' '.join(SAID.sentences[4:])}"


@pytest.fixture(scope="module")
def child() -> Any:
    return load_model(ModelConfig(path="tiny"))


def ids(child: Any, text: str) -> list[int]:
    return list(child.tokenizer(text, add_special_tokens=False)["input_ids"])


def asked(child: Any, before: str = BEFORE, after: str = AFTER, **fields: Any) -> Request:
    return Request.of(**{"prompt": before, "suffix": after, "max_new_tokens": len(ids(child, MIDDLE)), **fields})


def done(child: Any, request: Request) -> Result:
    return BlockEngine(child, Config().decode).generate(request)


def test_the_gap_lies_between_prompt_and_suffix_in_one_block(child: Any) -> None:
    bounds = Bounds(16, 512, 99, child.denoiser.mask_id, child.denoiser.vocab_size)
    made = prepare(asked(child), child.tokenizer, bounds)
    before, new, after = len(ids(child, BEFORE)), len(ids(child, MIDDLE)), len(ids(child, AFTER))
    assert (made.blocks.given, made.blocks.new, made.blocks.after) == (before, new, after)
    assert made.blocks.block == made.blocks.length == before + new + after and made.notes == ()
    assert made.editable.nonzero().flatten().tolist() == list(range(before, before + new))
    assert made.tokens[~made.editable].tolist() == ids(child, BEFORE) + ids(child, AFTER)
    apart = prepare(asked(child, block=16), child.tokenizer, bounds)
    assert apart.blocks.block == 16 and "not seen" in apart.notes[0]
    assert end_ids(asked(child), child.tokenizer) == frozenset()


@pytest.mark.parametrize("block", [None, 16])
def test_it_is_the_text_of_a_written_gap_and_only_what_was_filled_in_is_shown(child: Any, block: int | None) -> None:
    size = len(ids(child, MIDDLE))
    own = done(child, asked(child, block=block))
    whole = done(child, Request(prompt=f"{BEFORE} <gap:{size}>{AFTER}", infill=True, block=block or 512))
    assert BEFORE + own.text + AFTER == whole.text
    assert len(own.token_ids) == own.metrics.tokens == size and own.finish_reason == "length"
    assert own.metrics.prompt_tokens == len(ids(child, BEFORE)) + len(ids(child, AFTER))


def test_the_gap_says_what_the_suffix_demands_and_cannot_where_a_block_hides_it(child: Any) -> None:
    named = {}
    for colour in ("red", "green", "purple"):
        told = story("suffix:3", {"colour": colour})
        after = f" {' '.join(told.sentences[4:])}"
        found = [done(child, asked(child, after=after, block=block)).text.split() for block in (None, 16)]
        named[colour] = [colour in words for words in found]
    assert all(whole for whole, _ in named.values()), named
    assert not all(apart for _, apart in named.values()), named


def test_a_space_that_the_prompt_ends_in_is_not_written_twice(child: Any) -> None:
    plain, spaced = done(child, asked(child)), done(child, asked(child, before=BEFORE + " "))
    assert plain.token_ids == spaced.token_ids and plain.text == " " + spaced.text
    events = Driver(BlockEngine(child, Config().decode)).stream(asked(child, before=BEFORE + " "))
    assert "".join(one.text for one in events if isinstance(one, Commit)) == spaced.text


def test_companions_and_the_prefix_tree_change_nothing_and_a_single_block_is_not_kept(child: Any) -> None:
    engine = BlockEngine(child, Config().decode)
    looks = {"tau_edit": 0.9, "overrides": {"max_post_steps": 2}}  # what is looked at when full is committed
    requests = [asked(child, **looks), asked(child, block=16), Request(prompt=BEFORE, max_new_tokens=8), asked(child)]
    together = Driver(engine).run(requests)
    assert [one.text for one in together] == [done(child, one).text for one in requests]
    assert {key[0] for key in engine.sharing.tree.roots} == {16}  # type: ignore[index]
    assert [one.text for one in Driver(engine).run(requests)] == [one.text for one in together]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_new_tokens": None}, "max_new_tokens: beside a suffix"),
        ({"infill": True, "prompt": "a <gap:2>"}, "suffix: goes behind"),
        ({"prompt": None, "messages": ({"role": "user", "content": "a"},)}, "suffix: goes behind"),
        ({"max_new_tokens": 500}, "of suffix; shorten by"),
        ({"grammar": "regex:a+"}, "suffix"),
        ({"prompt": None, "prompt_ids": (5, 100_000)}, "none of this model's"),
        ({"policy": {"type": "threshold_indel"}}, "edits by actions"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(child: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DecodeError, match=words) as found:
        done(child, asked(child, **fields))
    assert "\n" not in str(found.value)


def test_an_empty_suffix_is_none(child: Any) -> None:
    both = [done(child, Request(prompt=BEFORE, suffix=suffix, max_new_tokens=8)).text for suffix in (None, "")]
    assert both[0] == both[1]
