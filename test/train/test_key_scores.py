# Key scores: the target counted key by key in transformers' own attention weights, the fit against least squares.
# Entry points: pytest.
# The shards and the parent are those of the other training tests; `kvzap` itself is tested in decoding/test_kv.py.
"""Tests of train/key_scores.py and models/key_scores.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from train.material import QUIET, configuration

from hildanext.config.noise import NoiseConfig
from hildanext.core.batches import document_batch
from hildanext.core.masks import block_diffusion_mask
from hildanext.core.noise import corrupt
from hildanext.core.types import Batch
from hildanext.errors import ConfigError, ModelError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.key_scores import NAME, KeyScores
from hildanext.models.load import load_model
from hildanext.train import key_scores
from hildanext.train.key_scores import Fit, Later, read, write_key_scores

BLOCK = 4


def rows() -> Batch:
    """Two rows, one of them of two documents."""
    source = torch.Generator().manual_seed(2)
    ids = [torch.randint(0, 60, (length,), generator=source).tolist() for length in (16, 8, 8)]
    made = document_batch([(one, 0) for one in ids], 61, BLOCK)
    tokens = torch.stack([made.tokens[0, :16], torch.cat([made.tokens[1, :8], made.tokens[2, :8]])])
    docs = torch.tensor([[0] * 16, [0] * 8 + [1] * 8])
    return Batch(tokens, torch.ones_like(docs, dtype=torch.bool), docs, (3, 4))


def wanted(model: Any, tokens: torch.Tensor, batch: Batch) -> list[dict[tuple[int, int, int], float]]:
    """Per layer {(row, key, head): target}, from eager attention weights, entry by entry."""
    length, mask = 16, block_diffusion_mask(16, BLOCK, batch.docs)
    bias = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    where = batch.positions().repeat(1, 2)
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=bias, position_ids=where, output_attentions=True, use_cache=False)
    found = []
    for weights in out.attentions:
        own = dict[tuple[int, int, int], float]()
        for row in range(2):
            for key in range(length):
                later = [
                    query
                    for query in range(2 * length)
                    if query % length // BLOCK > key // BLOCK
                    and batch.docs[row, query % length] == batch.docs[row, key]
                ]
                for head in range(2):
                    shares = [float(weights[row, 2 * head + g, q, length + key]) for g in (0, 1) for q in later]
                    if later:
                        own[row, key, head] = math.log(max(shares))
        found.append(own)
    return found


def compared(random_model: Any) -> None:
    batch, model = rows(), random_model("llama", seed=2)
    denoiser, inputs = HFDenoiser(model, 66), list[Any]()

    class Noting(Fit):
        """Keeps what it is told."""

        def add(self, own: torch.Tensor, targets: torch.Tensor) -> None:
            inputs.append((own, targets))

    read(denoiser, batch, BLOCK, [Noting(), Noting()])
    noise = torch.Generator().manual_seed(3)
    (view,) = corrupt(NoiseConfig(replace=0.0), denoiser, batch, BLOCK, noise)
    eager = random_model("llama", seed=2)
    eager.set_attn_implementation("eager")
    for (own, targets), known in zip(
        inputs, wanted(eager, torch.cat([view.tokens, batch.tokens], 1), batch), strict=True
    ):
        places = sorted({(row, key) for row, key, _ in known})
        assert len(own) == len(places) == 12 + 8
        assert own.square().mean(dim=1).tolist() == pytest.approx([1.0] * len(own), abs=1e-2)
        for at, (row, key) in enumerate(places):
            assert targets[at].tolist() == pytest.approx([known[row, key, head] for head in (0, 1)], abs=1e-4)


def test_the_target_is_the_largest_later_share_of_attention(random_model: Any) -> None:
    compared(random_model)


def test_a_planted_look_at_ones_own_block_is_seen(random_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    of = Later.of

    def planted(batch: Batch, block: int, grid: str, heads: int) -> Later:
        made = of(batch, block, grid, heads)
        made.later = made.visible[..., 16:] & made.later.any(dim=2, keepdim=True)
        return made

    monkeypatch.setattr(key_scores.Later, "of", planted)
    with pytest.raises(AssertionError):
        compared(random_model)


def test_the_fit_is_that_of_least_squares_and_says_how_much_it_explains() -> None:
    source = torch.Generator().manual_seed(1)
    inputs, noise = torch.randn(50, 4, generator=source), torch.randn(50, 2, generator=source)
    targets = inputs @ torch.randn(4, 2, generator=source) + 0.7 + 0.3 * noise
    fit = Fit()
    fit.add(inputs[:20], targets[:20])
    fit.add(inputs[20:], targets[20:])
    own = torch.cat([inputs, torch.ones(50, 1)], 1)
    exact = torch.linalg.lstsq(own, targets).solution
    torch.testing.assert_close(fit.solved(0.0).float(), exact, atol=1e-4, rtol=1e-4)
    left = (targets - own @ exact).square().sum() / (targets - targets.mean(dim=0)).square().sum()
    assert fit.explained(exact.double()) == pytest.approx(float(1 - left), abs=1e-5)
    assert fit.solved(10.0)[:4].norm() < 0.5 * exact[:4].norm()


def test_scores_are_written_loaded_used_and_refused_where_they_do_not_fit(
    shards: Path, parent: Path, tmp_path: Path
) -> None:
    file = tmp_path / NAME
    config = configuration(shards, model__path=str(parent), key_scores__file=str(file), key_scores__block=8)
    told = write_key_scores(config, QUIET)
    assert told["rows"] >= 8 and len(told["explained"]) == len(KeyScores.read(file, loaded_network(parent)).weight)
    model = load_model(config.model.model_copy(update={"key_scores": str(file)})).denoiser
    assert model.key_scores is not None and KeyScores.read(file, model.model).facts["block"] == "8"
    with pytest.raises(ModelError, match=r"model\.key_scores .*: of 1 layers and width 3, the model has"):
        KeyScores(torch.zeros(1, 2, 3), torch.zeros(1, 2), {}).write(file)
        KeyScores.read(file, model.model)
    file.write_text(json.dumps({}))
    with pytest.raises(ModelError, match="no file of key scores"):
        KeyScores.read(file, model.model)
    with pytest.raises(ConfigError, match="leave none to hold out"):
        write_key_scores(
            config.model_copy(update={"key_scores": config.key_scores.model_copy(update={"rows": 3})}), QUIET
        )


def loaded_network(parent: Path) -> Any:
    return load_model(configuration(parent, model__path=str(parent)).model).denoiser.model
