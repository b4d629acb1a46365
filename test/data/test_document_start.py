# What a tokenizer puts before a text stands before training rows and prompts alike, and what it puts behind it nowhere.
# Entry points: pytest.
# The story world's tokenizer with a post-processor: BOS before a text and EOS behind it, as Llama's and T5's do.
"""The beginning of a document, in training and in prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data.material import QUIET, configuration, read_rows

from hildanext.config.decode import DecodeConfig
from hildanext.config.model import ModelConfig
from hildanext.data.chat import prompt_ids
from hildanext.data.prepare import prepare
from hildanext.data.shards import ShardSet
from hildanext.data.tokenize import tokenize
from hildanext.data.tokenizers import document_start, load_tokenizer, storyworld_tokenizer
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.prompt import Bounds
from hildanext.decoding.prompt import prepare as prepared
from hildanext.decoding.request import Request
from hildanext.measure.generation import ARGenerator
from hildanext.measure.tasks.nll import story_batches
from hildanext.models.load import load_model
from hildanext.models.meta import HildaMeta
from hildanext.train.training import Training
from hildanext.world import story

BOS, EOS = 1, 0
TEXT = "One day a girl called Mia went to the zoo."
FORMS = {"both": [BOS], "first": [BOS], "last": [], "none": []}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tokenizer with BOS and EOS added by its post-processor: both, the first, the last or none."""
    from tokenizers.processors import TemplateProcessing

    found = {}
    for form in FORMS:
        folder = tmp_path_factory.mktemp(form)
        tokenizer = storyworld_tokenizer(folder)
        bos, eos = tokenizer.convert_ids_to_tokens([BOS, EOS])
        single = [bos] * (form in ("both", "first")) + ["$A"] + [eos] * (form in ("both", "last"))
        backend = tokenizer.backend_tokenizer
        backend.post_processor = TemplateProcessing(single=" ".join(single), special_tokens=[(bos, BOS), (eos, EOS)])
        backend.save(str(folder / "tokenizer.json"))
        found[form] = load_tokenizer(folder)
    return found


@pytest.fixture(scope="module", params=FORMS)
def form(request: Any) -> str:
    return str(request.param)


def test_a_prompt_has_the_tokenizers_start_once_and_never_its_end(tokenizers: dict[str, Any], form: str) -> None:
    tokenizer = tokenizers[form]
    plain = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert (tokenizer(TEXT)["input_ids"][-1] == EOS) == (form in ("both", "last"))
    assert document_start(tokenizer) == FORMS[form]
    assert prompt_ids(tokenizer, TEXT, None) == [*FORMS[form], *plain]
    written = tokenizer.convert_ids_to_tokens(BOS) + TEXT
    assert prompt_ids(tokenizer, written, None) == [BOS, *plain]
    assert prompt_ids(tokenizer, "", None) == FORMS[form]
    gaps = prepared(Request.of(prompt=f"{TEXT} <gap:2>", infill=True), tokenizer, Bounds(8, 64, 8, 3))
    assert gaps.tokens.tolist() == [*FORMS[form], *plain, 3, 3]


def test_a_held_out_story_is_scored_as_a_training_row_begins(tokenizers: dict[str, Any], form: str) -> None:
    tokenizer, told = tokenizers[form], story("7:0")
    (batch,), truth = story_batches(tokenizer, 7, 1, 1)
    start = FORMS[form]
    (plain,), _ = story_batches(tokenizer, 7, 1, 1, start=[])
    assert (
        batch.tokens[0].tolist() == [*prompt_ids(tokenizer, told.text, None), EOS] == start + plain.tokens[0].tolist()
    )
    assert batch.learn[0].tolist() == [False] * len(start) + plain.learn[0].tolist()
    assert truth.value == pytest.approx(-sum(told.gains[1:]) / int(batch.learn.sum()))


@pytest.fixture(scope="module")
def shards(tokenizers: dict[str, Any], form: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    settings = {"tokenizer": tokenizers[form].name_or_path, "window": 256}
    config = configuration(root, [{"type": "storyworld", "stories": 20, "chat": 4}], settings, eval_share=0.3)
    prepare(config, QUIET)
    tokenize(config, QUIET)
    return root


def test_a_training_row_begins_as_a_prompt_of_its_text_and_ends_once(shards: Path, tokenizers: Any, form: str) -> None:
    tokenizer, rows = tokenizers[form], read_rows(shards / "processed" / "set" / "train.jsonl")
    train = ShardSet.open(shards / "tokenized" / "set" / "train")
    assert train.manifest["document_start"] == FORMS[form]
    for index, tokens in train.documents():
        assert tokens.tolist() == [*prompt_ids(tokenizer, rows[index]["text"], None), EOS]
    assert dict(train.texts(tokenizer)) == {index: row["text"] for index, row in enumerate(rows)}
    row = train[0]
    starts = [0, *(place for place in range(1, len(row.docs)) if row.docs[place] != row.docs[place - 1])]
    assert all(row.learn[place] != bool(FORMS[form]) for place in starts if row.docs[place] < row.docs.max())


def test_a_trained_model_records_the_start_of_its_rows_and_is_asked_with_it(shards: Path, form: str) -> None:
    train = ShardSet.open(shards / "tokenized" / "set" / "train")
    run = SimpleNamespace(path=Path("r"))
    config = SimpleNamespace(objective=SimpleNamespace(type="mask_and_edit"))
    training = SimpleNamespace(
        loaded=SimpleNamespace(meta=HildaMeta(), path=None), run=run, shards=train, causal=False, config=config,
        ladder=SimpleNamespace(steps=1, last=8), command="",
    )  # fmt: skip
    meta = Training.meta.fget(training)  # type: ignore[attr-defined]
    assert meta.document_start == FORMS[form]
    assert HildaMeta.model_validate_json(meta.text()) == meta
    old = SimpleNamespace(**{**vars(training), "shards": SimpleNamespace(manifest={})})
    assert Training.meta.fget(old).document_start == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(("recorded", "wanted"), [(None, [BOS]), ([], []), ([BOS], [BOS]), ([2, 2], [2, 2])])
def test_what_the_folder_records_goes_before_every_prompt(tokenizers: Any, recorded: Any, wanted: list[int]) -> None:
    parts, tokenizer = load_model(ModelConfig()), tokenizers["both"]
    meta = parts.meta.model_copy(update={"document_start": recorded})
    loaded = SimpleNamespace(denoiser=parts.denoiser, tokenizer=tokenizer, meta=meta)
    engine = BlockEngine(loaded, DecodeConfig())
    asked = Request.of(prompt=TEXT, max_new_tokens=4)
    engine.submit(asked)
    plain = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert list(engine.waiting[0].text.prompt) == [*wanted, *plain] == ARGenerator(loaded, DecodeConfig()).prompt(asked)
