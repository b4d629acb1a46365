# What training a latent model needs: its own weights, counted without storage, and the frozen parent beside it.
# Entry points: LatentFootprint, latent_footprint.
# Its activations are taken to be those of the parent in a conversion at the same window, and that is said.
"""Memory of latent models in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hildanext.config import Config
from hildanext.core.latent import Ground
from hildanext.models.footprint import OPTIMIZER_BYTES, NetworkFootprint
from hildanext.models.kind import Footprint
from hildanext.models.latent import kind_in
from hildanext.models.load import choose_device, choose_dtype, kind_at
from hildanext.models.shape import Shape


@dataclass(frozen=True)
class LatentFootprint:
    """The footprint of a latent model in training. base: of the parent; count: its parameters; see
    models.kind.Footprint."""

    base: Footprint
    count: int

    def weights(self, dtype: torch.dtype) -> float:
        """Bytes of the latent model and its parent."""
        return self.count * dtype.itemsize + self.base.weights(dtype)

    def training(self, config: Config, window: int, ranks: int) -> Mapping[str, float]:
        """Bytes by part."""
        dtype, _ = choose_dtype(config.model.dtype, choose_device(config.model.device))
        parts = self.base.training(config, window, ranks)
        own = {
            "parameters": self.weights(dtype), "gradients": float(self.count * dtype.itemsize),
            "optimizer": float(self.count * OPTIMIZER_BYTES[config.optimizer.name]),
        }  # fmt: skip
        return {**parts, **own}

    def unsure(self, config: Config, window: int) -> str:
        """That activations are the parent's."""
        return "memory: activations of a latent model are taken to be its parent's in a conversion, so they may be off"

    def decoding(self, config: Config, window: int) -> Mapping[str, float]:
        """The weights."""
        return {"parameters": self.weights(torch.float32)}


def latent_footprint(config: Config) -> Footprint:
    """Of a run of `latent` on the discrete model of model.path; that of the path itself where it is another kind, which
    the recipe refuses."""
    base = kind_at(config.model.path).footprint(config.model)
    if not isinstance(base, NetworkFootprint):
        return base
    shape, kind = Shape.of(base.config), kind_in(config.latent.model.model_dump(), "latent.model")
    with torch.device("meta"):
        made = kind.build(Ground(shape.vocabulary, shape.hidden, shape.layers, 0, shape.window))
    return LatentFootprint(base, sum(one.numel() for one in made.parameters()))
