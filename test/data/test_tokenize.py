# tokenize: text -> shards -> the same text; tokens in = tokens packed; what is refused, replaced and dropped.
# Entry points: pytest.
# The story world's tokenizer; the Qwen3 tokenizer on the real samples where the assets are.
"""Tests of data/tokenize.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.material import QUIET, configuration, read_rows, write_rows

from hildanext.config import load_config
from hildanext.data.chat import render
from hildanext.data.prepare import prepare
from hildanext.data.shards import ShardSet
from hildanext.data.template import end_of_turn
from hildanext.data.tokenize import filled_to, tokenize
from hildanext.data.tokenizers import load_tokenizer, storyworld_tokenizer, tokenizer_hash
from hildanext.errors import ConfigError, DataError

WORLD = {"type": "storyworld", "stories": 60, "chat": 30, "arithmetic": 20, "coding": 20}


def made(root: Path, sources: list[dict[str, Any]], settings: dict[str, Any], **data: Any) -> dict[str, Any]:
    config = configuration(root, sources, {"tokenizer": "storyworld", **settings}, **data)
    prepare(config, QUIET)
    return tokenize(config, QUIET)


def texts_come_back(root: Path, split: str, tokenizer: Any) -> int:
    rows = read_rows(root / "processed" / "set" / f"{split}.jsonl")
    found = dict(ShardSet.open(root / "tokenized" / "set" / split).texts(tokenizer))
    assert found == {index: row["text"] for index, row in enumerate(rows)}
    return len(found)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    made(root, [WORLD], {"window": 256}, eval_share=0.3)
    return root


def test_the_tokenizer_is_saved_beside_the_shards_and_its_hash_recorded(world: Path) -> None:
    folder = world / "tokenized" / "set"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["tokenizer_hash"] == tokenizer_hash(folder / "tokenizer")
    assert all(split["tokenizer_hash"] == manifest["tokenizer_hash"] for split in manifest["splits"].values())


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_decoded_shard_gives_back_the_document_text_exactly(world: Path, split: str) -> None:
    assert texts_come_back(world, split, load_tokenizer(world / "tokenized" / "set" / "tokenizer")) > 5


@pytest.mark.parametrize("split", ["train", "eval", "sft_train", "sft_eval"])
def test_tokens_and_documents_reconcile(world: Path, split: str) -> None:
    shards = ShardSet.open(world / "tokenized" / "set" / split)
    manifest = shards.manifest
    assert manifest["tokens_in"] == manifest["tokens"]
    assert manifest["documents_in"] == manifest["documents"] + sum(manifest["dropped"].values())
    assert manifest["documents_in"] == len(read_rows(world / "processed" / "set" / f"{split}.jsonl"))
    rows = [shards[i] for i in range(len(shards))]
    assert sum(int(row.learn.sum()) for row in rows) == manifest["learned"]


def test_every_document_ends_with_a_trained_end_token(world: Path) -> None:
    shards = ShardSet.open(world / "tokenized" / "set" / "train")
    assert all(tokens[-1] == 0 and 0 not in tokens[:-1] for _, tokens in shards.documents())
    assert shards.manifest["learned"] == shards.manifest["tokens"]


def test_chats_are_filled_to_the_block_with_trained_end_tokens(world: Path) -> None:
    shards = ShardSet.open(world / "tokenized" / "set" / "sft_train")
    tokenizer = load_tokenizer(world / "tokenized" / "set" / "tokenizer")
    rows = read_rows(world / "processed" / "set" / "sft_train.jsonl")
    seen = 0
    for row in (shards[i] for i in range(len(shards))):
        for number in range(int(row.docs.max()) + 1):
            here = row.docs == number
            if not row.learn[here].any():
                continue
            assert int(here.sum()) % 32 == 0 and row.learn[here][-1]
            marked = tokenizer.decode(row.tokens[here & row.learn]).replace("<|endoftext|>", "")
            replies = {
                "".join(f"{m['content']}<|im_end|>" for m in r["messages"] if m["role"] == "assistant") for r in rows
            }
            assert marked in replies
            seen += 1
    assert seen == len(rows)


@pytest.mark.parametrize("split", ["sft_train", "train"])
def test_filler_is_marked_and_what_is_left_is_the_chat_with_its_first_end_token(tmp_path: Path, split: str) -> None:
    settings = {"window": 256, "pad_to_block": 16, "pad_text_to_block": 16}
    made(tmp_path, [WORLD], settings, eval_share=0, chat_in_text=True)
    shards = ShardSet.open(tmp_path / "tokenized" / "set" / split)
    tokenizer, documents, whole = load_tokenizer(tmp_path / "tokenized" / "set" / "tokenizer"), 0, 0
    turn, end = tokenizer.convert_tokens_to_ids("<|im_end|>"), int(shards.manifest["pad_id"])
    for index in range(len(shards)):
        row, filler = shards[index], shards.filler(index)
        assert (row.tokens[filler] == end).all() and row.learn[filler].all()
        for number in range(int(row.docs.max()) + 1):
            here = row.docs == number
            if row.learn[here].any():
                kept, documents, whole = row.tokens[here & ~filler], documents + 1, whole + int(here.sum())
                assert here.sum() == -(-len(kept) // 16) * 16
                assert kept[-1] == (turn if split == "sft_train" else end) and end not in kept[:-1]
    assert documents == shards.manifest["documents"] and shards.manifest["filler"] > documents
    assert shards.manifest["pad_to_block"] == 16 and whole == shards.manifest["learned"] + _context(shards)


def _context(shards: ShardSet) -> int:
    return int(shards.manifest["tokens"]) - int(shards.manifest["learned"])


@pytest.mark.parametrize(
    ("ladder", "block"), [({}, 32), ({"fixed": 16}, 16), ({"decay_to": 8}, 8), ({"fixed": 0, "decay_to": 4}, 4)]
)
def test_chats_are_filled_to_the_block_their_run_is_decoded_with(ladder: dict[str, Any], block: int) -> None:
    config = load_config(base={"ladder": ladder})
    assert filled_to(config).pad_to_block == block
    said = load_config(base={"ladder": ladder, "tokenize": {"pad_to_block": 0}})
    assert filled_to(said).pad_to_block == 0


@pytest.mark.parametrize("packing", ["first_fit", "concat"])
def test_documents_longer_than_the_window_are_cut_and_come_back(tmp_path: Path, packing: str) -> None:
    manifest = made(tmp_path, [WORLD], {"window": 32, "packing": packing}, eval_share=0)
    split = manifest["splits"]["train"]
    assert split["pieces"] > 4 * split["documents"]
    assert texts_come_back(tmp_path, "train", load_tokenizer(tmp_path / "tokenized" / "set" / "tokenizer")) > 50
    assert split["fill_rate"] > 0.99 if packing == "concat" else split["fill_rate"] > 0.9


def test_plain_documents_are_filled_to_a_block_on_request(tmp_path: Path) -> None:
    made(tmp_path, [WORLD], {"window": 64, "pad_text_to_block": 16, "packing": "first_fit"}, eval_share=0)
    shards = ShardSet.open(tmp_path / "tokenized" / "set" / "train")
    assert all(len(tokens) % 16 == 0 for _, tokens in shards.documents())
    starts = [np.flatnonzero(np.diff(shards[i].docs)) + 1 for i in range(len(shards))]
    assert all((found % 16 == 0).all() for found in starts)
    assert texts_come_back(tmp_path, "train", load_tokenizer(tmp_path / "tokenized" / "set" / "tokenizer")) > 50


def test_a_block_that_does_not_divide_the_window_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenize\.pad_to_block: 24 does not divide"):
        made(tmp_path, [WORLD], {"window": 64, "pad_to_block": 24})


def test_without_end_tokens_the_shards_hold_the_text_alone(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "Mia went."}])
    settings = {"window": 32, "append_eos": False}
    manifest = made(tmp_path, [{"type": "jsonl", "path": str(path)}], settings, eval_share=0)
    assert manifest["splits"]["train"]["tokens"] == 3


def test_each_turn_becomes_a_document_and_long_chats_are_dropped_with_a_count(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    long = [{"role": "user", "content": "a " * 40}, {"role": "assistant", "content": "b"}]
    path = write_rows(tmp_path / "a.jsonl", [{"messages": turns * 2}, {"messages": long}])
    settings = {"window": 32, "pad_to_block": 16, "turns": "each"}
    manifest = made(tmp_path, [{"type": "jsonl", "path": str(path)}], settings, eval_share=0)
    split = manifest["splits"]["sft_train"]
    assert split["dropped"] == {"longer than the window": 1}
    assert (split["documents_in"], split["documents"], split["pieces"]) == (2, 1, 2)


def test_of_a_reply_that_was_cut_off_whole_blocks_stay_and_no_end_is_learned(tmp_path: Path) -> None:
    whole = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b " * 40}]
    cut = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "b " * 40, "finished": False}]
    short = [{"role": "user", "content": "d"}, {"role": "assistant", "content": "b", "finished": False}]
    path = write_rows(tmp_path / "a.jsonl", [{"messages": chat} for chat in (whole, cut, short)])
    settings = {"window": 128, "pad_to_block": 16}
    manifest = made(tmp_path, [{"type": "jsonl", "path": str(path)}], settings, eval_share=0)
    assert manifest["splits"]["sft_train"]["dropped"] == {"cut off within its first block": 1}
    tokenizer = storyworld_tokenizer(tmp_path / "own")
    expected = render(whole, tokenizer).ids
    (_, first), (_, second) = ShardSet.open(tmp_path / "tokenized" / "set" / "sft_train").documents()
    assert expected[-1] == end_of_turn(tokenizer).id and first.tolist() == expected + [0] * (-len(expected) % 16)
    words = render([cut[0], {**cut[1], "finished": True}], tokenizer).ids[:-1]
    assert len(words) % 16 and second.tolist() == words[: len(words) // 16 * 16]
    assert render(cut, tokenizer).ids == words and render(cut, tokenizer).learn[-1]


def test_token_ids_are_taken_as_they_are_and_refused_outside_the_vocabulary(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "a.jsonl", [{"input_ids": [5, 6, 7]}, {"input_ids": [5, 99_999, -1]}, {"input_ids": [-7]}]
    )
    source = [{"type": "jsonl", "path": str(path)}]
    with pytest.raises(DataError, match=r"3 ids .* outside the vocabulary .*out_of_range=replace"):
        made(tmp_path, source, {"window": 32}, eval_share=0)
    assert not (tmp_path / "tokenized" / "set").exists()
    manifest = made(tmp_path, source, {"window": 32, "out_of_range": "replace"}, eval_share=0)
    assert manifest["splits"]["train"]["replaced_ids"] == 3
    shards = ShardSet.open(tmp_path / "tokenized" / "set" / "train")
    assert [tokens.tolist() for _, tokens in shards.documents()] == [[5, 6, 7, 0], [5, 0, 0, 0], [0, 0]]


def test_token_ids_that_name_another_tokenizer_are_refused(tmp_path: Path) -> None:
    own = tokenizer_hash(storyworld_tokenizer(tmp_path / "own"))
    for name, given in (("right", own), ("wrong", "0" * 64)):
        path = write_rows(tmp_path / f"{name}.jsonl", [{"input_ids": [5, 6], "tokenizer_hash": given}])
        source = [{"type": "jsonl", "path": str(path)}]
        if name == "right":
            made(tmp_path, source, {"window": 32}, eval_share=0)
            continue
        with pytest.raises(DataError, match="its token ids are of tokenizer 000000000000"):
            made(tmp_path, source, {"window": 32}, eval_share=0)


def test_an_unprepared_or_changed_set_is_an_error(tmp_path: Path) -> None:
    config = configuration(tmp_path, [WORLD], {"tokenizer": "storyworld"})
    with pytest.raises(DataError, match="prepare-data"):
        tokenize(config, QUIET)
    prepare(config, QUIET)
    with (tmp_path / "processed" / "set" / "train.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match="its manifest says"):
        tokenize(config, QUIET)


def test_a_model_folder_without_a_tokenizer_is_not_passed_over_for_the_story_worlds(tmp_path: Path) -> None:
    config = configuration(tmp_path, [WORLD], {"window": 256})
    prepare(config, QUIET)
    (tmp_path / "adapters").mkdir()
    model = config.model.model_copy(update={"path": str(tmp_path / "adapters")})
    with pytest.raises(DataError, match=r"auto: .*adapters holds no tokenizer\.json; name the folder that does"):
        tokenize(config.model_copy(update={"model": model}), QUIET)
    assert "word level" not in str(tokenize(config, QUIET))


def test_one_flipped_bit_of_a_prepared_set_and_a_broken_manifest_are_one_line(tmp_path: Path) -> None:
    config, folder = configuration(tmp_path, [WORLD], {"tokenizer": "storyworld"}), tmp_path / "processed" / "set"
    prepare(config, QUIET)
    whole = bytearray((folder / "train.jsonl").read_bytes())
    whole[len(whole) // 2] ^= 1
    (folder / "train.jsonl").write_bytes(whole)
    with pytest.raises(DataError, match=r"train.jsonl: damaged, .* run `hildanext prepare-data` again"):
        tokenize(config, QUIET)
    for text in ("{", "[]", '{"files": {}}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=r"manifest.json: cannot be read \(.*prepare-data"):
            tokenize(config, QUIET)


def test_the_tokenizer_of_the_models_folder_is_taken(tmp_path: Path) -> None:
    storyworld_tokenizer(tmp_path / "model")
    config = configuration(tmp_path, [WORLD], {"window": 64})
    prepare(config, QUIET)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "model")})})
    manifest = tokenize(config, QUIET)
    assert manifest["tokenizer_hash"] == tokenizer_hash(tmp_path / "model") == tokenizer_hash(manifest["tokenizer"])


def test_shards_are_made_again_where_the_model_section_names_their_own_tokenizer(tmp_path: Path) -> None:
    first = made(tmp_path, [WORLD], {"window": 64})
    config = configuration(tmp_path, [WORLD], {"window": 64})
    new = config.model.new.model_copy(update={"tokenizer": first["tokenizer"]})
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": "new", "new": new})})
    assert tokenize(config, QUIET) == {**first, "config": config.tokenize.model_dump()}
    assert tokenizer_hash(first["tokenizer"]) == first["tokenizer_hash"]


def test_the_real_samples_go_through_with_the_qwen_tokenizer(assets: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(assets / "qwen3-tokenizer")
    sources = [
        {"type": "dolma", "path": str(assets / "dolma-samples")},
        {"type": "tinystories", "path": str(assets / "tinystories" / "tinystories_clean.jsonl")},
        {"type": "tinystories", "path": str(assets / "tinystories" / "cs336_tinystories_sample.txt")},
        {"type": "jsonl", "path": str(assets / "rasbt-instruct" / "instruction-data.json")},
        {"type": "jsonl", "path": str(assets / "gsm8k" / "test.jsonl")},
    ]
    settings = {"tokenizer": str(assets / "qwen3-tokenizer"), "window": 1024}
    config = configuration(tmp_path, sources, settings)
    prepared = prepare(config, QUIET)
    documents = prepared["documents"]
    assert documents["read"] == documents["kept"] + sum(documents["dropped"].values()) == 60 + 944 + 5 + 1100 + 1319
    manifest = tokenize(config, QUIET)
    for name, split in manifest["splits"].items():
        assert split["documents_in"] == prepared["files"][name]["documents"]
        assert split["documents"] + sum(split["dropped"].values()) == split["documents_in"]
        assert split["tokens_in"] == split["tokens"] and split["fill_rate"] > 0.8
    assert texts_come_back(tmp_path, "train", tokenizer) + texts_come_back(tmp_path, "eval", tokenizer) == sum(
        prepared["files"][name]["documents"] for name in ("train", "eval")
    )
