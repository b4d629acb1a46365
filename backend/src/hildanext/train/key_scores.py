# Key scores: for every key the logarithm of the largest share of attention any later block pays it, and a linear fit.
# Entry points: write_key_scores, Later (layout and listener of one forward), Fit (of one layer).
# A forward over [x_t ; x_0] shows both kinds of query there are in decoding: of blocks being filled and of final ones.
# Letters: B rows, L positions, H key heads, D hidden width.
"""Fitting key scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hildanext.config import Config
from hildanext.config.noise import NoiseConfig
from hildanext.core.batches import stacked
from hildanext.core.masks import BlockDiffusionRule, block_ids
from hildanext.core.noise import corrupt
from hildanext.core.types import Batch
from hildanext.data.shards import check_tokenizer
from hildanext.data.tokenizers import tokenizer_hash
from hildanext.errors import ConfigError
from hildanext.models.denoiser import HFDenoiser, hugging_face
from hildanext.models.key_scores import NAME, KeyScores, entering
from hildanext.models.load import BUNDLED, NEW, load_model
from hildanext.models.shape import Shape
from hildanext.progress import Console
from hildanext.train.training import check_window, open_shards

HELD_OUT = 8
LEAST = -20.0
"""Logarithm of the least share that is told from none."""


@dataclass
class Fit:
    """Linear least squares of one layer from sums: moments [D + 1, D + 1], products [D + 1, H], squares [H], sums [H],
    of `count` keys; float64."""

    count: int = 0
    moments: Tensor | float = 0.0
    products: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    sums: Tensor | float = 0.0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Keys with inputs [n, D] and targets [n, H]."""
        own, wanted = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1).double(), targets.double()
        self.count += len(own)
        self.moments, self.products = self.moments + own.T @ own, self.products + own.T @ wanted
        self.squares, self.sums = self.squares + wanted.square().sum(0), self.sums + wanted.sum(0)

    def solved(self, ridge: float) -> Tensor:
        """[D + 1, H]: weights, the last row the bias, which no penalty is on."""
        moments = torch.as_tensor(self.moments)
        penalty = torch.full((len(moments),), ridge * self.count, dtype=torch.float64, device=moments.device)
        penalty[-1] = 1e-9
        found: Tensor = torch.linalg.solve(moments + penalty.diag(), torch.as_tensor(self.products))
        return found

    def explained(self, weights: Tensor) -> float:
        """Share of the targets' variance that the weights explain, of all heads together; at most 1."""
        errors = (
            torch.as_tensor(self.squares)
            - 2 * (weights * self.products).sum(0)
            + (weights * (torch.as_tensor(self.moments) @ weights)).sum(0)
        )
        spread = torch.as_tensor(self.squares) - torch.as_tensor(self.sums).square() / self.count
        return float(1 - errors.sum() / spread.sum())


@dataclass
class Later:
    """The layout of a forward over [x_t ; x_0] that notes for each clean key what later blocks pay it. visible, later
    [B, 1, 2L, 2L] and [B, 1, 2L, L] bool; heads: H. targets: per layer [B, L, H], in the order of the layers."""

    visible: Tensor
    later: Tensor
    heads: int
    targets: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, batch: Batch, block: int, grid: str, heads: int) -> Later:
        """For the rows of a batch."""
        length = batch.tokens.shape[1]
        rule = BlockDiffusionRule.of(length, block, batch.docs, grid, None)
        index = torch.arange(2 * length, device=batch.tokens.device)
        rows = torch.arange(len(batch.tokens), device=batch.tokens.device)[:, None, None, None]
        visible = rule.visible(rows, index[:, None], index[None, :])
        blocks = block_ids(length, block, batch.docs, grid).expand_as(batch.docs)
        other = torch.cat([blocks, blocks], 1)[:, :, None] != blocks[:, None, :]
        return cls(visible, visible[..., length:] & other[:, None], heads)

    @property
    def known(self) -> Tensor:
        """[B, L] bool: keys that some later query of their document sees."""
        return self.later.any(dim=2)[:, 0]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attention by its formula, in float32, and its largest shares."""
        scores = query.float() @ key.float().transpose(2, 3) * (query.shape[3] ** -0.5 if scale is None else scale)
        share = scores.masked_fill(~self.visible, float("-inf")).softmax(dim=3)
        length = self.later.shape[3]
        most = (share[..., length:] * self.later).amax(dim=2)
        rows, heads = most.shape[:2]
        most = most.view(rows, self.heads, heads // self.heads, length).amax(dim=2)
        self.targets.append(most.clamp(min=1e-38).log().clamp(min=LEAST).transpose(1, 2))
        return share.to(value.dtype) @ value


def write_key_scores(config: Config, console: Console) -> dict[str, Any]:
    """Fit and write the scores of model.path; returns where, rows, tokens and what is explained per layer. ConfigError
    for a model they cannot be fitted on. Source: KVzap arXiv:2601.07891; the target and the closed form are ours."""
    settings, shards = config.key_scores, open_shards(config, config.train.split)
    loaded = load_model(config.model, console)
    check_tokenizer(shards, loaded.tokenizer)
    check_window(loaded, shards.window)
    model, block = hugging_face(loaded.denoiser), settings.block or loaded.meta.block or config.decode.block
    if not block or shards.window % block:
        raise ConfigError(f"key_scores.block: {block} does not divide rows of {shards.window}; give one that does")
    if not model.takes_layout or model.mixers:
        raise ConfigError("key-scores: kvzap takes models whose layers all attend to their keys as they are; not this")
    if not settings.file and config.model.path in (*BUNDLED, NEW):
        raise ConfigError("key_scores.file: this model has no folder of its own to write to; name a file")
    count = min(settings.rows, len(shards))
    if count < HELD_OUT:
        raise ConfigError(f"key_scores.rows: {count} rows leave none to hold out; give {HELD_OUT} or more")
    fits, held = ([Fit() for _ in range(Shape.of(model.config).layers)] for _ in range(2))
    with console.bar("key scores", count) as bar:
        for index in range(count):
            batch = stacked([shards[index]], (index,)).to(loaded.device)
            read(model, batch, block, held if index % HELD_OUT == HELD_OUT - 1 else fits)
            bar.advance()
    return _written(config, loaded, (fits, held), {"rows": count, "block": block}, console)


@torch.no_grad()
def read(model: HFDenoiser, batch: Batch, block: int, fits: Sequence[Fit]) -> None:
    """Add the keys of a batch to the fit of each layer."""
    inputs = dict[int, Tensor]()
    length = batch.tokens.shape[1]
    rng = torch.Generator().manual_seed(batch.ids[0] if batch.ids else 0)
    (view,) = corrupt(NoiseConfig(replace=0.0), model, batch, block, rng)
    layout = Later.of(batch, block, model.block_grid, Shape.of(model.config).kv_heads)
    tokens, positions = torch.cat([view.tokens, batch.tokens], 1), batch.positions().repeat(1, 2)
    with entering(model.model, inputs.__setitem__):
        model.body(tokens, positions, layout.visible, layout=layout)
    known = layout.known
    for layer, fit in enumerate(fits):
        fit.add(inputs[layer][:, length:][known], layout.targets[layer][known])


def _written(
    config: Config, loaded: Any, fits: tuple[Sequence[Fit], Sequence[Fit]], facts: dict[str, Any], console: Console
) -> dict[str, Any]:
    solved = [fit.solved(config.key_scores.ridge) for fit in fits[0]]
    explained = [round(held.explained(own), 3) for held, own in zip(fits[1], solved, strict=True)]
    weights = torch.stack(solved).float().transpose(1, 2)
    path = Path(config.key_scores.file).expanduser() if config.key_scores.file else loaded.path / NAME
    told = {**facts, "tokens": fits[0][0].count, "explained": explained, "file": str(path)}
    origin = {"tokenizer": tokenizer_hash(loaded.tokenizer), "model": Path(config.model.path).name}
    known = {name: str(value) for name, value in {**told, **origin}.items() if name != "file"}
    KeyScores(weights[..., :-1].cpu(), weights[..., -1].cpu(), known).write(path)
    console.say(f"{path}: {sum(explained) / len(explained):.2f} of the held-out variance explained, mean of the layers")
    return told
