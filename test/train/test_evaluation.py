# Evaluation against models whose answers are known: a uniform one and one that knows the text.
# Entry points: pytest.
# The uniform model's NLL is log of the tokens it may predict; the knowing model repairs all and spoils nothing.
"""Tests of train/evaluation.py."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from train.material import configuration

from hildanext.core.types import Batch
from hildanext.models.load import load_model
from hildanext.train.evaluation import Evaluator
from hildanext.train.training import open_shards

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
