# What denoisers share that another runtime computes: logits on the CPU in float32, and no likelihoods.
# Entry points: DecodesOnly (a base class), places_read.
# Letters: B rows, Q positions of a row, n selected positions, D width, V vocabulary.
"""Denoisers that decode and do nothing else."""

from __future__ import annotations

from typing import ClassVar, Never

import torch
from torch import Tensor

from hildanext.core.types import Batch
from hildanext.errors import ModelError


class DecodesOnly:
    """The part of core.types.Denoiser that is alike wherever PyTorch does not compute the forward. `refusal` is what
    is said to whoever asks for features."""

    refusal: ClassVar[str]

    @property
    def dtype(self) -> torch.dtype:
        """float32: what goes in and comes out."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """The CPU, where what goes in and comes out lies."""
        return torch.device("cpu")

    @property
    def takes_layout(self) -> bool:
        """False: it takes masks."""
        return False

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        """ModelError: it has none."""
        self._refuse()

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        """ModelError: it has none."""
        self._refuse()

    def head(self) -> Tensor:
        """ModelError: it has no output matrix [V, D] to give."""
        self._refuse()

    def _refuse(self) -> Never:
        raise ModelError(f"model: {self.refusal}")


def places_read(positions: Tensor, asked: Tensor, shift: str) -> Tensor:
    """Flat places [n] whose logits predict the positions in `asked` [B, Q] bool: their own, or with shift `clean` the
    one before (positions [B, Q]; a text's first position has none and is read itself). ValueError where that one lies
    before the forward."""
    index = torch.arange(positions.numel()).view_as(positions)
    if shift == "clean":
        if bool((asked[:, 0] & (positions[:, 0] != 0)).any()):
            raise ValueError("denoiser: with shift the forward must begin before the first selected position")
        index = torch.where(positions == 0, index, index - 1)
    return index[asked]
