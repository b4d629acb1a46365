# The text of tokens does not depend on where blocks end: any partition gives the same text, ids, deltas and commits.
# Entry points: the tests; the oracle decodes everything at once and cuts where the first stop string begins.
# Two tokenizers that split characters: Qwen3's byte-level one, and one with SentencePiece's spaces and byte pieces.
"""Stop strings and block ends."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hildanext.data.tokenizers import load_tokenizer
from hildanext.decoding.text import TextStream

TEXTS = (
    "Das Mädchen lief — naïve — durch den 森 und rief: »Größe 3½«! 🙂🙂 Ende.",
    "日本語の文章です。次の行\n\nUser: もう一度🐶\n\nUser:終わり",
    "aaabaaab ab abc abcabd é e\u0301 éé ab\n\n\nabc",
)


@pytest.fixture(scope="module")
def sentence_pieces() -> Any:
    """Letters of ASCII, the space as U+2581, and bytes for everything else."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "\u2581dog", "ab", "abc"]
    pieces += [chr(code) for code in range(33, 127)]
    made = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module", params=["qwen3", "sentence pieces"])
def tokenizer(request: Any, assets: Path, sentence_pieces: Any) -> Any:
    return sentence_pieces if request.param == "sentence pieces" else load_tokenizer(assets / "qwen3-tokenizer")


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def some_stops(source: random.Random, text: str) -> tuple[str, ...]:
    """Strings of the text, one of them inside another that begins earlier, one that goes on otherwise than the text."""
    start = source.randrange(len(text) - 4)
    around = text[start : start + source.randrange(3, 12)]
    inside = around[1 : 1 + source.randrange(1, len(around))]
    other = text[source.randrange(len(text)) :][: source.randrange(1, 6)] or "x"
    return tuple(source.sample([around, inside, around + "~", other + source.choice(["", "#", "é"])], 3))


def emitted(tokenizer: Any, prompt: Sequence[int], parts: Sequence[Sequence[int]], stops: tuple[str, ...]) -> Any:
    """(text, ids, stopped) of a stream that got these parts; what it showed on the way must add up to them."""
    stream, shown, kept = TextStream(tokenizer, prompt, stops), "", list[int]()
    for number, part in enumerate(parts):
        delta = stream.push(part, last=number == len(parts) - 1)
        shown, kept = shown + delta, kept + stream.ids[len(kept) : stream.settled]
    assert shown == stream.text and kept == stream.ids
    return stream.text, kept, stream.stopped


def cut(source: random.Random, ids: Sequence[int]) -> list[Sequence[int]]:
    places = sorted(source.sample(range(1, len(ids)), source.randrange(min(12, len(ids) - 1))))
    return [ids[a:b] for a, b in zip([0, *places], [*places, len(ids)], strict=True)]


@pytest.mark.parametrize("text", TEXTS)
def test_any_partition_into_blocks_gives_the_text_cut_where_the_first_stop_begins(tokenizer: Any, text: str) -> None:
    prompt = tokenizer("Once", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a " + text, add_special_tokens=False)["input_ids"]
    whole = decoded(tokenizer, [*prompt, *ids])[len(decoded(tokenizer, prompt)) :]
    for seed in range(60):
        source = random.Random(f"{seed} {text}")
        stops = some_stops(source, whole)
        places = [whole.index(stop) for stop in stops if stop in whole]
        wanted = whole[: min(places)] if places else whole
        found = [emitted(tokenizer, prompt, parts, stops) for parts in ([ids], [[one] for one in ids])]
        found += [emitted(tokenizer, prompt, cut(source, ids), stops) for _ in range(3)]
        assert found[0][0] == wanted and found[0][2] == bool(places), stops
        assert all(one == found[0] for one in found), stops


def test_any_partition_of_tokens_that_are_no_text_gives_the_same(tokenizer: Any) -> None:
    for seed in range(60):
        source = random.Random(seed)
        ids = [source.choice([*range(3, 259), *range(3, 330)]) for _ in range(24)]
        whole = decoded(tokenizer, ids)
        stops = some_stops(source, whole)
        found = [emitted(tokenizer, (), parts, stops) for parts in ([ids], [[one] for one in ids], cut(source, ids))]
        assert found[1] == found[0] == found[2], (seed, stops)


def test_a_stop_string_that_begins_in_a_block_and_ends_in_the_next_leaks_nothing(tokenizer: Any) -> None:
    ids = tokenizer("x日本語", add_special_tokens=False)["input_ids"]
    for place in range(1, len(ids)):
        stream = TextStream(tokenizer, (), ("日本語",))
        assert stream.push(ids[:place]) + stream.push(ids[place:], last=True) == "x" and stream.stopped


def test_the_space_of_an_answer_is_kept_behind_a_prompt_that_ends_inside_a_character(sentence_pieces: Any) -> None:
    half = sentence_pieces("I see a 犬", add_special_tokens=False)["input_ids"][:-1]
    dog = sentence_pieces.convert_tokens_to_ids("\u2581dog")
    assert TextStream(sentence_pieces, half).push([dog], last=True) == " dog"
    rest = sentence_pieces("犬", add_special_tokens=False)["input_ids"][-1:]
    assert TextStream(sentence_pieces, half).push([*rest, dog], last=True) == "犬 dog"


def test_a_long_prompt_of_byte_pieces_is_read_from_the_beginning_of_its_characters(sentence_pieces: Any) -> None:
    prompt = sentence_pieces("犬" * 9, add_special_tokens=False)["input_ids"]
    answer = sentence_pieces("猫", add_special_tokens=False)["input_ids"][1:]
    assert TextStream(sentence_pieces, prompt).push(answer, last=True) == "猫"


def test_a_prompt_that_ends_in_tokens_without_text_still_has_its_text_before_the_answer(sentence_pieces: Any) -> None:
    prompt = [*sentence_pieces("a", add_special_tokens=False)["input_ids"], *[sentence_pieces.bos_token_id] * 9]
    dog = sentence_pieces.convert_tokens_to_ids("\u2581dog")
    assert TextStream(sentence_pieces, prompt).push([dog], last=True) == " dog"
