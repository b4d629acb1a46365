# Evaluation against models whose answers are known: a uniform one and one that knows the text.
# Entry points: pytest.
# The uniform model's NLL is log of the tokens it may predict; the knowing model repairs all and spoils nothing.
"""Tests of train/evaluation.py."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from train.material import WINDOW, configuration, records, run

from hildanext.core.likelihood import autoregressive_nll
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch
from hildanext.data.packing import FILLER, Piece
from hildanext.data.shards import ShardSet, ShardWriter
from hildanext.errors import DataError
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.train.evaluation import Evaluator, held_out
from hildanext.train.merge import Choice, merge_run
from hildanext.train.training import open_shards, open_splits

VOCABULARY, MASK = 11, 10


class Knowing:
    """Features are the one-hot clean token times `sharpness`; 0 makes it uniform."""

    mask_id, block_grid = MASK, "global"

    def __init__(self, sharpness: float) -> None:
        self.sharpness = sharpness

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        return self.sharpness * torch.nn.functional.one_hot(batch.tokens[select], VOCABULARY).float()

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        return self.noisy_features(batch.tokens, batch, 1, select)

    def head(self) -> Tensor:
        return torch.eye(VOCABULARY)


def batches() -> tuple[Batch, ...]:
    tokens = torch.randint(0, MASK, (4, 16), generator=torch.Generator().manual_seed(0))
    learn = torch.ones_like(tokens, dtype=torch.bool)
    learn[:, 0] = False
    return (Batch(tokens, learn, torch.zeros_like(tokens), (0, 1, 2, 3)),)


def test_a_uniform_model_scores_log_of_the_vocabulary_at_every_block() -> None:
    found = Evaluator(batches(), (1, 4, 16), 4).measure(Knowing(0.0))  # type: ignore[arg-type]
    assert list(found["nll"].values()) == pytest.approx([math.log(VOCABULARY - 1)] * 3, rel=1e-5)
    assert found["eval_nll"] == found["nll"]["4"]
    read = Evaluator(batches(), (4,), 4).causal(Knowing(0.0))  # type: ignore[arg-type]
    assert read == pytest.approx([math.log(VOCABULARY - 1)] * 2)


def test_a_model_that_knows_the_text_repairs_everything_and_spoils_nothing() -> None:
    found = Evaluator(batches(), (4,), 4).measure(Knowing(50.0))  # type: ignore[arg-type]
    assert found["repair"] == {"0": 1.0, "0.5": 1.0, "0.9": 1.0}
    assert found["false_edit"] == {"0": 0.0, "0.5": 0.0, "0.9": 0.0}
    assert found["nll"]["4"] < 1e-3


def test_an_unsure_model_edits_only_below_its_confidence() -> None:
    found = Evaluator(batches(), (4,), 4).measure(Knowing(3.0))  # type: ignore[arg-type]
    confidence = math.exp(3) / (math.exp(3) + VOCABULARY - 2)
    assert 0.5 < confidence < 0.9
    assert found["repair"] == {"0": 1.0, "0.5": 1.0, "0.9": 0.0}


def test_the_numbers_repeat() -> None:
    evaluator = Evaluator(batches(), (1, 4), 4)
    assert evaluator.measure(Knowing(1.0)) == evaluator.measure(Knowing(1.0))  # type: ignore[arg-type]


def test_errors_are_planted_among_the_ids_that_training_draws(shards: Path, parent: Path) -> None:
    config = configuration(shards, model__path=str(parent), train__eval_rows=16)
    loaded, planted = load_model(config.model), list[Tensor]()
    plain = loaded.denoiser.noisy_features

    def spy(noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        if not (noisy == loaded.denoiser.mask_id).any():
            planted.append(noisy[noisy != batch.tokens])
        return plain(noisy, batch, block, select)

    loaded.denoiser.noisy_features = spy  # type: ignore[method-assign]
    Evaluator.of(config, loaded, open_shards(config, "eval"), (4,), 4).measure(loaded.denoiser)
    drawn = torch.cat(planted)
    assert len(drawn) > 10
    assert not torch.isin(drawn, torch.tensor(loaded.tokenizer.all_special_ids)).any()
    assert int(drawn.max()) <= max(loaded.tokenizer.get_vocab().values())


def test_a_share_of_nothing_is_none() -> None:
    nothing = tuple(replace(batch, learn=torch.zeros_like(batch.learn)) for batch in batches())
    found = Evaluator(nothing, (4,), 4).measure(Knowing(1.0))  # type: ignore[arg-type]
    assert set(found["repair"].values()) == set(found["false_edit"].values()) == {None}
    assert found["eval_nll"] is None and found["nll"] == found["nll_without_ends"] == {"4": None}
    assert Evaluator(nothing, (4,), 4).causal(Knowing(1.0)) == (None, None)  # type: ignore[arg-type]


def chats(folder: Path, like: ShardSet, block: int) -> ShardSet:
    """The documents of `like`, one to a row, learned from the fourth token on, filled to blocks; block 0: unfilled."""
    end = int(like.manifest["pad_id"])
    writer = ShardWriter(folder, WINDOW, int(like.manifest["vocab_size"]), end)
    for number, tokens in like.documents():
        missing = -len(tokens) % block if block else 0
        marks = np.array([0] * 3 + [1] * (len(tokens) - 3) + [FILLER] * missing)
        writer.write([Piece(number, np.append(tokens, [end] * missing), marks)])
    writer.close({"tokenizer_hash": like.manifest["tokenizer_hash"], "pad_to_block": block})
    return ShardSet.open(folder)


def test_what_only_fills_a_block_is_neither_scored_nor_repaired_nor_seen(
    shards: Path, parent: Path, tmp_path: Path
) -> None:
    config = configuration(shards, model__path=str(parent), train__eval_rows=8)
    loaded, like = load_model(config.model), open_shards(config, "eval")
    plain, filled = chats(tmp_path / "plain", like, 0), chats(tmp_path / "filled", like, 16)
    assert filled.manifest["filler"] > 50
    made = [Evaluator.of(config, loaded, one, (1, 16), 16) for one in (plain, filled)]
    found = [one.measure(loaded.denoiser) for one in made]
    assert found[1]["nll"]["1"] == pytest.approx(found[0]["nll"]["1"], rel=1e-5)
    assert found[1]["nll_without_ends"]["1"] == pytest.approx(found[0]["nll_without_ends"]["1"], rel=1e-5)
    assert made[1].causal(loaded.denoiser) == pytest.approx(made[0].causal(loaded.denoiser), rel=1e-5)
    for batch in made[1].batches:
        hidden = torch.from_numpy(np.stack([filled.filler(row) for row in batch.ids]))
        assert hidden.any() and bool((batch.tokens[hidden] == loaded.denoiser.mask_id).all())
        assert not batch.learn[hidden].any()
    assert sum(int(batch.learn.sum()) for batch in made[1].batches) == sum(
        int(batch.learn.sum()) for batch in made[0].batches
    )


def test_no_number_depends_on_how_many_rows_share_a_forward(shards: Path, parent: Path) -> None:
    found = []
    for batch in (1, 3, 16):
        config = configuration(shards, model__path=str(parent), train__eval_rows=7, train__batch=batch)
        loaded = load_model(config.model)
        evaluator = Evaluator.of(config, loaded, open_shards(config, "eval"), (1, 4, 16), 16)
        found.append(evaluator.measure(loaded.denoiser))
    for other in found[1:]:
        for name in ("nll", "nll_without_ends"):
            assert other[name] == pytest.approx(found[0][name], rel=1e-5)
        assert (other["repair"], other["false_edit"]) == (found[0]["repair"], found[0]["false_edit"])


def test_terms_of_end_tokens_are_left_out_and_nothing_else(shards: Path, parent: Path) -> None:
    config = configuration(shards, model__path=str(parent), train__eval_rows=5)
    loaded = load_model(config.model)
    evaluator = Evaluator.of(config, loaded, open_shards(config, "eval"), (1,), 1)
    end = int(loaded.tokenizer.eos_token_id)
    assert end in evaluator.ends
    whole, bare = evaluator.causal(loaded.denoiser)
    texts = [replace(batch, learn=batch.learn & (batch.tokens != end)) for batch in evaluator.batches]
    parts = [autoregressive_nll(loaded.denoiser, batch) for batch in texts]
    assert bare == pytest.approx(sum(part.nats for part in parts) / sum(part.tokens for part in parts)) != whole
    found = evaluator.measure(loaded.denoiser)
    again = replace(evaluator, batches=tuple(texts)).measure(loaded.denoiser)
    assert found["eval_nll_without_ends"] == pytest.approx(again["eval_nll"]) != found["eval_nll"]


def without_evaluation(shards: Path, folder: Path, rows: int | None = None) -> Path:
    """The shards with an empty evaluation split; rows: as many to train on."""
    shutil.copytree(shards, folder)
    manifest = open_shards(configuration(shards), "train").manifest
    known = {name: manifest[name] for name in ("tokenizer_hash", "tokenizer")}
    ShardWriter(folder / "eval", WINDOW, manifest["vocab_size"], manifest["pad_id"]).close(known)
    if rows is not None:
        writer = ShardWriter(folder / "train", WINDOW, manifest["vocab_size"], manifest["pad_id"])
        for number in range(rows):
            writer.write([Piece(number, np.arange(10, 20), np.ones(10))])
        writer.close(known)
    return folder


def test_rows_are_held_out_of_training_where_the_evaluation_split_is_empty(
    shards: Path, parent: Path, tmp_path: Path, capsys: Any
) -> None:
    own = without_evaluation(shards, tmp_path / "shards")
    report = run(tmp_path / "run", own, model__path=str(parent), train__checkpoint_every=4, train__eval_every=4)
    assert "has no rows: 1 of the" in capsys.readouterr().err
    assert report["first"]["eval_nll"] > 1 and report["best"]
    assert [record["eval"]["eval_nll"] > 1 for record in records(tmp_path / "run") if "eval" in record] == [True] * 3
    config = configuration(own, model__path=str(parent))
    train, evaluation = open_splits(config, Console(quiet=True))
    whole = open_shards(config, "train")
    assert (len(train), len(evaluation)) == (len(whole) - 1, 1)
    assert evaluation[0].tokens.tolist() == whole[0].tokens.tolist() not in [train[i].tokens.tolist() for i in range(5)]
    merged = merge_run(config, Console(quiet=True), tmp_path / "run", Choice(best=2), None)
    assert all(score > 1 for score in merged["eval_nll"].values())


def test_a_run_over_the_first_rows_trains_on_no_other(
    shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = configuration(shards, model__path=str(parent), train__rows=3)
    train, evaluation = open_splits(few, Console(quiet=True))
    assert len(train) == 3 and len(evaluation) == len(open_shards(few, "eval"))
    whole = open_shards(few, "train")
    assert [row.tokens.tolist() for row in train] == [whole[i].tokens.tolist() for i in range(3)]
    seen, losses = list[list[int]](), MaskAndEdit.losses

    def watched(own: Any, model: Any, batch: Batch, *more: Any) -> Any:
        seen.extend(batch.tokens.tolist())
        return losses(own, model, batch, *more)

    monkeypatch.setattr(MaskAndEdit, "losses", watched)
    run(tmp_path / "run", shards, model__path=str(parent), train__rows=3, train__steps=6)
    assert len(seen) == 12 and {tuple(row) for row in seen} == {tuple(row.tokens.tolist()) for row in train}
    many = configuration(shards, model__path=str(parent), train__rows=10_000)
    assert len(open_splits(many, Console(quiet=True))[0]) == len(whole)


def test_what_cannot_be_evaluated_is_refused(shards: Path, parent: Path, tmp_path: Path) -> None:
    one = without_evaluation(shards, tmp_path / "one", rows=1)
    with pytest.raises(DataError, match=r"eval: no rows, and .*train has 1, of which none can be held out"):
        run(tmp_path / "run", one, model__path=str(parent), train__steps=1)
    config = configuration(shards, model__path=str(parent))
    loaded, like = load_model(config.model), open_shards(config, "eval")
    writer = ShardWriter(tmp_path / "unlearned", WINDOW, like.manifest["vocab_size"], like.manifest["pad_id"])
    writer.write([Piece(0, np.arange(10), np.zeros(10))])
    writer.close({})
    with pytest.raises(DataError, match=r"unlearned: no token to score in its first 1 rows"):
        Evaluator.of(config, loaded, ShardSet.open(tmp_path / "unlearned"), (1,), 1)


@pytest.mark.parametrize(("rows", "most", "count"), [(2, 16, 1), (39, 16, 1), (100, 16, 5), (10_000, 16, 16)])
def test_a_twentieth_is_held_out_but_no_more_than_is_evaluated(rows: int, most: int, count: int, shards: Path) -> None:
    whole = open_shards(configuration(shards), "train")
    many = replace(whole, stop=rows)
    train, evaluation, words = held_out(many, whole.part(0, 0), most)
    assert (len(train), len(evaluation)) == (rows - count, count) and f"{count} of the {rows} rows" in words
    assert held_out(many, whole, most) == (many, whole, "")


def test_every_seed_that_a_configuration_takes_can_be_evaluated_with() -> None:
    found = Evaluator(batches(), (4,), 4, seed=2**63 - 1).measure(Knowing(1.0))  # type: ignore[arg-type]
    assert found["eval_nll"] > 0
