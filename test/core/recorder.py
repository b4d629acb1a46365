# A stand-in model that keeps what it was asked, and the batch and objectives of the loops that recompute its loss.
# Entry points: Recorder, example, build, mean, rng.
# The example has prompts, two documents, and an unlabelled tail.
"""What the tests of the objectives share."""

from __future__ import annotations

import torch
from core.stand_ins import LayerModel, batch_of
from torch import Tensor

from hildanext import registry
from hildanext.core.types import Batch, LossReport


def build(name: str, **fields):
    return registry.build("objectives", {"type": name, **fields})


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example(rows: int = 4, length: int = 16, seed: int = 1) -> Batch:
    generator = rng(seed)
    tokens = torch.randint(0, 11, (rows, length), generator=generator)
    learn = torch.ones(rows, length, dtype=torch.bool)
    learn[:, -3:] = False
    learn[0, :9] = False
    docs = (torch.arange(length) >= 6).long() + (torch.arange(length) >= length - 3).long()
    return batch_of(tokens, learn, docs.expand(rows, length).clone(), tuple(range(10, 10 + rows)))


def mean(report: LossReport) -> Tensor:
    return report.total / report.normaliser


class Recorder(LayerModel):
    """A LayerModel that keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Batch, Tensor]] = []

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        self.asked.append((noisy, batch, select))
        return super().noisy_features(noisy, batch, block, select)

    def logits(self, turn: int, block: int, exclude: bool = True) -> Tensor:
        noisy, batch, _ = self.asked[turn]
        every = torch.ones_like(noisy, dtype=torch.bool)
        logits = LayerModel.noisy_features(self, noisy, batch, block, every) @ self.head().T
        logits = logits.view(*noisy.shape, -1).detach()
        return logits[..., : self.mask_id] if exclude else logits
