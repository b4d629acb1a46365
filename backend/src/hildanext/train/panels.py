# What the panels of a run show, from the model as it is: a held-out row decoded by force, and filled at half its masks.
# Entry points: Panels.
# Drawn every train.panels_every steps; nothing is drawn from a random stream that the training uses.
"""Panels of a training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hildanext.core.likelihood import token_nll
from hildanext.core.noise import maskable, unit_sizes, units
from hildanext.core.types import Batch
from hildanext.data.shards import scored_batch
from hildanext.decoding.forced import forced
from hildanext.decoding.modes import resolve_mode
from hildanext.decoding.request import Request
from hildanext.report.losses import read_metrics
from hildanext.report.panels import Decoding, Strip, draw_decoding, draw_history, draw_strip, panel_file
from hildanext.report.plots import picture
from hildanext.train.loop import evaluating
from hildanext.train.training import Training

WIDEST, BLOCKS = 96, 4


class Panels:
    """The panels of one run. model: what is evaluated."""

    def __init__(self, training: Training, model: Any) -> None:
        self.training, self.model, self.block = training, model, training.ladder.last
        config, loaded = training.config, training.loaded
        self.policy = resolve_mode(Request(prompt=""), config.decode, loaded.meta.decode).policy
        batch = scored_batch(training.evaluation, [0], loaded.denoiser.mask_id)
        width = max(self.block, min(batch.tokens.shape[1], max(WIDEST, self.block * BLOCKS) // self.block * self.block))
        self.batch = Batch(batch.tokens[:, :width], batch.learn[:, :width], batch.docs[:, :width], (0,)).to(
            loaded.device
        )

    def draw(self, step: int) -> Iterator[tuple[str, Path]]:
        """(kind, file) of every panel that could be drawn; why one was not is said once, as a warning."""
        run, at = self.training.run.path, f"step {step}"
        with evaluating(self.model), torch.no_grad():
            decoding, strip = self.decoding(), self.strip()
        records = read_metrics(run)
        draws: dict[str, Any] = {
            "decoding": lambda figure: draw_decoding(figure, decoding, f"forced decoding, {at}"),
            "prediction": lambda figure: draw_strip(figure, strip, f"half of every block masked, {at}"),
            "history": lambda figure: draw_history(figure, records, f"loss by mask rate, to {at}"),
        }
        for kind, draw in draws.items():
            path = panel_file(run, kind, step)
            reason = picture(path, draw, (10, 3.6))
            if reason:
                self.training.console.warn(reason)
                return
            yield kind, path

    def decoding(self) -> Decoding:
        """The row decoded by force under the section decode, one block after the other."""
        found = forced(self.model, self.batch, self.block, self.policy, entropies=True)
        unit, can = found.unit[0], self.batch.learn[0].cpu()
        starts = [0, *((unit[1:] != unit[:-1]).nonzero()[:, 0] + 1).tolist()]
        hidden = torch.stack([masked[0] for masked, _ in found.looks]) if found.looks else can[None] & False
        values = torch.stack([entropy[0] for _, entropy in found.looks]) if found.looks else torch.zeros(1, len(can))
        return Decoding(values.masked_fill(~hidden, torch.nan), found.right[0] | ~can, starts)

    def strip(self) -> Strip:
        """Every second position of each block masked, filled in one forward."""
        batch, tokenizer = self.batch, self.training.loaded.tokenizer
        can = maskable(batch, self.model.mask_id)
        unit = units("block", batch, self.block, self.model.block_grid)
        ordinal = can.long().cumsum(dim=1) - unit_sizes(unit, can).cumsum(dim=1).gather(1, unit)
        masked = can & (ordinal % 2 == 0)
        noisy = batch.tokens.masked_fill(masked, self.model.mask_id)
        scores = token_nll(self.model, noisy, batch, self.block, masked)
        right, sure = (torch.zeros(masked.shape, dtype=kind) for kind in (torch.bool, torch.float32))
        right[masked.cpu()], sure[masked.cpu()] = scores.correct.cpu(), scores.probability.float().cpu()
        pieces = [tokenizer.decode([token]) for token in batch.tokens[0].tolist()]
        return Strip(pieces, masked[0].cpu(), right[0], sure[0])
