# compare: a child against its parent text by text, against numbers taken another way; what cannot be compared.
# Entry points: pytest.
# The oracle of the likelihoods is the model's own method on one text at a time, at a block that is enumerated.
"""Tests of measure/pair.py and the command compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hildanext.cli import main
from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.core.batches import document_batch
from hildanext.core.likelihood import autoregressive_nll
from hildanext.data.tokenizers import train_small
from hildanext.errors import DataError, ModelError
from hildanext.measure import pair as measured
from hildanext.measure.pair import compare_pair
from hildanext.measure.pair_report import verdict
from hildanext.models.load import load_model
from hildanext.models.save import save_model
from hildanext.progress import Console
from hildanext.report.intervals import Measure
from hildanext.world import story

QUIET = Console(quiet=True)
SHORT = Config.model_validate({"decode": {"max_new_tokens": 8}})


@pytest.fixture(scope="module")
def pair(story_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A parent folder (never converted) and a child with other weights, of one tokenizer."""
    folder = tmp_path_factory.mktemp("pair")
    loaded = load_model(ModelConfig(path=str(story_model)))
    save_model(loaded.denoiser, loaded.tokenizer, folder / "parent")
    with torch.no_grad():
        for parameter in loaded.denoiser.parameters():  # type: ignore[attr-defined]
            parameter.mul_(1.5)
    save_model(loaded.denoiser, loaded.tokenizer, folder / "child", replace_block(loaded.meta))
    return str(folder / "parent"), str(folder / "child")


def replace_block(meta: Any) -> Any:
    return meta.model_copy(update={"block": 4})


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    told = [" ".join(story(str(i)).text.split()[:30]) for i in range(5)]
    chats = [
        {"messages": [{"role": "user", "content": "Tell a story."}, {"role": "assistant", "content": text}]}
        for text in told[:2]
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*({"text": text} for text in told), *chats]))
    return file


def test_likelihoods_are_those_of_one_text_at_a_time_without_its_end(
    pair: tuple[str, str], rows: Path, tmp_path: Path
) -> None:
    report = compare_pair(SHORT, pair, rows, 5, QUIET, tmp_path / "run")
    loaded = load_model(ModelConfig(path=pair[0]))
    nats, tokens = 0.0, 0
    for line in rows.read_text().splitlines()[:5]:
        ids = loaded.tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
        found = autoregressive_nll(loaded.denoiser, document_batch([(ids, 0)], 0))
        nats, tokens = nats + found.nats, tokens + found.tokens
        assert found.tokens == len(ids) - 1
    assert report["measures"]["parent"]["nll"]["value"] == pytest.approx(nats / tokens, rel=1e-5)
    bound = report["measures"]["child"]["nll"]["value"]
    assert report["difference"]["value"] == pytest.approx(bound - nats / tokens, rel=1e-4)
    assert report["difference"]["low"] <= report["difference"]["value"] <= report["difference"]["high"]
    assert report["texts"] == 5 and report["speed"] > 0


def test_the_command_writes_table_sentence_and_page_for_texts_chats_and_tasks(
    pair: tuple[str, str], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    line = ["compare", *pair, "--data", str(rows), "--run-dir", str(run), "--set", "decode.max_new_tokens=6"]
    line += ["--set", 'eval.tasks=[{"type": "nll", "limit": 2, "blocks": [1], "rows": 2}]']
    assert main(line) == 0
    err = capsys.readouterr().err
    assert "times the tokens per second" in err and "nll: autoregressive" in err and "tokens per forward" in err
    report = json.loads((run / "report.json").read_text())
    assert report["texts"] == 7 and len(report["answers"]) == 7
    page = (run / "compare.html").read_text()
    assert "transformers&#x27; generate" in page and "Tell a story." in page
    monkeypatch.setattr(measured, "load_model", lambda *given: pytest.fail("a second start measures again"))
    assert main([*line, "--show", "1"]) == 0
    again = capsys.readouterr().err
    assert "compared before" in again and report["verdict"] in again and again.count("\nchild: ") == 1
    assert report["verdict"].split(" ", 1)[1][:40] in page and "http" not in page.replace("http://www.w3.org", "")


def test_the_verdict_follows_the_interval() -> None:
    said = [
        verdict(("p", "c"), Measure(value, value - 0.1, value + 0.1, 9), (1.5, 2.25), 2.0) for value in (0.3, 0.0, -0.3)
    ]
    assert [word in one for word, one in zip(("worse", "as well", "better"), said, strict=True)] == [True] * 3
    assert said[0] == (
        "c writes 1.50 times the tokens per second of p (2.00 tokens per forward; 2.25 times those of transformers'"
        " generate) and predicts these 9 texts worse: +0.300 nats per token [+0.200, +0.400], a bound against an exact"
        " value."
    )


def test_what_cannot_be_compared_is_said(pair: tuple[str, str], rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="never converted"):
        compare_pair(SHORT, (pair[1], pair[0]), rows, 2, QUIET, tmp_path / "a")
    with pytest.raises(DataError, match="the child .*nowhere is not there; give a model folder"):
        compare_pair(SHORT, (pair[0], str(tmp_path / "nowhere")), None, 2, QUIET, tmp_path / "b")
    with pytest.raises(DataError, match="give --data FILE"):
        compare_pair(SHORT, pair, None, 2, QUIET, tmp_path / "b")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no texts"):
        compare_pair(SHORT, pair, tmp_path / "empty.jsonl", 2, QUIET, tmp_path / "c")
    long = SHORT.model_copy(update={"decode": SHORT.decode.model_copy(update={"max_new_tokens": 4000})})
    with pytest.raises(DataError, match="none of 2 texts can be used"):
        compare_pair(long, pair, rows, 2, QUIET, tmp_path / "d")
    other = tmp_path / "other"
    shutil.copytree(pair[0], other)
    train_small(["a b c"], other, 280)
    with pytest.raises(ModelError, match="another tokenizer"):
        compare_pair(SHORT, (str(other), pair[1]), rows, 2, QUIET, tmp_path / "e")


def test_without_data_the_texts_are_those_the_run_held_out(
    pair: tuple[str, str], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["prepare-data", "--quiet", "--set", f'data.sources=[{{"type": "jsonl", "path": "{rows}"}}]']
    assert main([*line, "--set", "data.name=own", "--set", "data.eval_share=0.7"]) == 0
    run = tmp_path / "runs" / "child"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"state": "done"}))
    (run / "config.json").write_text(json.dumps({"data": {"name": "own"}}))
    shutil.copytree(pair[1], run / "model")
    held = len((tmp_path / "data" / "processed" / "own" / "eval.jsonl").read_text().splitlines())
    for child in ("runs/child", "runs/child/model"):
        report = compare_pair(SHORT, (pair[0], child), None, 9, QUIET, None)
        assert report["texts"] == held > 0
