# Tokenizers: exact round trip of any text, no control token out of text, a hash that survives saving and a mask token.
# Entry points: pytest.
# The story world's own tokenizer is built once; the Qwen3 tokenizer is used where the assets are.
"""Tests of data/tokenizers.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hildanext.data.tokenizers import (
    SPECIAL,
    encode_texts,
    end_of_document,
    load_tokenizer,
    storyworld_tokenizer,
    tokenizer_hash,
    train_small,
)  # fmt: skip
from hildanext.errors import ModelError
from hildanext.world import corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    storyworld_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60) | st.text("ab .,\n\t<|im_end|>dogMia019", max_size=60))
def test_any_text_comes_back_exactly_and_holds_no_control_token(tokenizer: Any, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    ids = encode_texts(tokenizer, [text])[0]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_every_word_of_the_story_world_is_one_token(tokenizer: Any) -> None:
    text = next(corpus("stories", 0, 1))["text"]
    words = text.replace(".", " .").replace(",", " ,").split()
    assert len(encode_texts(tokenizer, [text])[0]) == len(words)
    assert len(tokenizer) < 1200


def test_control_tokens_are_single_ids_in_their_places(tokenizer: Any) -> None:
    assert [tokenizer.encode(token) for token in SPECIAL] == [[0], [1], [2], [3]]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 0, 3)
    assert end_of_document(tokenizer) == 0


def test_the_chat_template_writes_turns(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_hash_survives_saving_and_a_mask_token_and_tells_vocabularies_apart(
    folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    own = tokenizer_hash(folder)
    tokenizer.save_pretrained(str(tmp_path / "again"))
    assert own == tokenizer_hash(tokenizer) == tokenizer_hash(tmp_path / "again")
    other = train_small(["a dog ran"], tmp_path / "other")
    assert tokenizer_hash(other) != own
    before = tokenizer_hash(other)
    other.add_tokens(["[MASK]"], special_tokens=True)
    assert tokenizer_hash(other) == before


def test_a_small_tokenizer_keeps_the_most_used_words_within_its_size(tmp_path: Path) -> None:
    texts = ["the dog saw the cat", "the dog ran"]
    tokenizer = train_small(texts, tmp_path, size=256 + 4 + 4 + 2)
    assert len(tokenizer) <= 266
    assert [len(ids) for ids in encode_texts(tokenizer, [" dog", " cat"])] == [1, 4]
    assert tokenizer.decode(encode_texts(tokenizer, texts)[0]) == texts[0]


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json missing"):
        load_tokenizer(tmp_path)
