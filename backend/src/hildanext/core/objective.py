# The base of every objective: a plugin with the defaults of what the protocol declares beside `loss`.
# Entry points: BaseObjective.
# An objective that needs a second model or the vocabulary overrides `companions` (or
# `compares_with_origin`) and `prepare`; most need none of them.
"""Base class of the objectives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch

from hildanext.core.types import About, Batch, Denoiser, LossReport, Pass
from hildanext.registry import Plugin


class BaseObjective(Plugin):
    """A training signal as a plugin: fields are settings, `loss` is the implementation. See core.types.Objective."""

    @property
    def companions(self) -> tuple[str, ...]:
        """No further model."""
        return ()

    @property
    def compares_with_origin(self) -> bool:
        """It does not."""
        return False

    @property
    def passes(self) -> tuple[Pass, ...]:
        """One forward that scores every learnable position."""
        return (Pass(),)

    def prepare(self, about: About) -> Self:
        """Itself."""
        return self

    def at(self, done: float) -> Self:
        """Itself."""
        return self

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        """The report of one micro-batch at one block size; block <= 0 or >= L means the whole row (MDLM)."""
        raise ValueError(f"objective {type(self).__name__} defines no loss")

    def losses(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> Iterator[LossReport]:
        """The whole loss, once."""
        yield self.loss(model, batch, block, rng)
