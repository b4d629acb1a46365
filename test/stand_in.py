# The base of every scripted model in the tests: all that core.types.Denoiser declares, with plain defaults.
# Entry points: StandIn.
# A test's model overrides the one thing it scripts: noisy_features, causal_features or __call__.
"""A denoiser with defaults."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StandIn:
    """Attributes of a denoiser, each overridden by the keyword of its name; logits are its features (the head is the
    identity). A computation that a test's model does not script is an error."""

    mask_id: int = 0
    vocab_size: int = 1
    window: int = 0
    block_grid: str = "global"
    shift: str = "none"
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    exact: bool = True
    takes_layout: bool = False
    end_ids: frozenset[int] = frozenset()

    def __init__(self, **given: Any) -> None:
        super().__init__()
        for name, value in given.items():
            if name not in StandIn.__annotations__:
                raise TypeError(f"StandIn: no attribute {name!r}")
            setattr(self, name, value)

    def state_bytes(self, positions: int) -> int:
        return positions

    def head(self) -> Tensor:
        return torch.eye(self.vocab_size, dtype=self.dtype)

    def __call__(self, *args: Any, **keywords: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} scripts no logits")

    def noisy_features(self, noisy: Tensor, batch: Any, block: int, select: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} scripts no noisy_features")

    def causal_features(self, batch: Any, select: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} scripts no causal_features")
