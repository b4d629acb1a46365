# What a latent model is: a type (a plugin of hildanext/latents) that builds a module with a loss and a sampler.
# Entry points: LatentType (base of the plugins), LatentModel (base of what they build), Ground, Draw, Piece, report.
# Letters: B rows, L positions of a row, D width of the parent's states, V rows of the vocabulary.
# Everything mutable of a model (averages of losses, shift and scale) is a buffer, so that its weights are its state.
"""The contract of latent diffusion models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hildanext.core.types import Batch, Denoiser, LossReport
from hildanext.registry import Plugin


@dataclass(frozen=True)
class Ground:
    """The discrete model that a latent one is built on. vocabulary: V; hidden: D; layers, window (0: unknown): counts;
    mask_id; ends: ids that end a text; parent: it itself, frozen, None where the type does not need it now; states
    (batch, layer from 1) -> [B, L, D]: what a layer gives, read causally within documents, without a gradient."""

    vocabulary: int
    hidden: int
    layers: int
    mask_id: int
    window: int = 0
    ends: tuple[int, ...] = ()
    parent: Denoiser | None = None
    states: Callable[[Batch, int], Tensor] | None = None

    def facts(self) -> dict[str, Any]:
        """The plain values, as a model folder keeps them."""
        names = ("vocabulary", "hidden", "layers", "mask_id", "window", "ends")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Draw:
    """How texts are drawn. steps: of the sampler, a count (per block, where the model has blocks); sampler: one of the
    model's `samplers`; guidance: weight of classifier-free guidance, 1: none."""

    steps: int
    sampler: str
    guidance: float = 1.0


@dataclass(frozen=True)
class Piece:
    """Tokens that became final: of each text in order, [] where there were none; forwards: of the network since the
    piece before, a count for each text."""

    tokens: Sequence[Sequence[int]]
    forwards: int


class LatentModel(nn.Module):
    """Base of what the types build: parameters that train, buffers, and no copy of the parent (it is in `ground`, which
    torch does not see and the caller may replace). samplers: names that `Draw.sampler` may have, the usual one first;
    window: the longest text, tokens, 0: no bound."""

    samplers: ClassVar[tuple[str, ...]] = ("euler",)

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.ground, self.window = ground, ground.window

    @property
    def exact(self) -> bool:
        """Whether a text does not depend on which others share its forwards, to the bit."""
        return False

    def loss(self, batch: Batch, done: float, rng: torch.Generator) -> LossReport:
        """The report (see `report`) of one micro-batch; done: share of the run behind it, in [0, 1). All randomness is
        rng's, a CPU generator; buffers may change where self.training. In evaluation the same rng gives the same."""
        raise ValueError(f"{type(self).__name__} defines no loss")

    def sample(
        self, prompts: Sequence[Sequence[int]], new: int, draw: Draw, rngs: Sequence[torch.Generator]
    ) -> Iterator[Piece]:
        """`new` tokens or more behind each prompt (ids, may be empty), piece by piece; nobody asks further where every
        text has ended. A text's draws come from its own rng alone; end tokens are the caller's to find."""
        raise ValueError(f"{type(self).__name__} defines no sample")

    def proposing(self) -> Denoiser | None:
        """Of a type whose texts our block decoder writes: the frozen parent with this model's proposals in it, which
        the decoder reads. None: texts are drawn by `sample`."""
        return None


class LatentType(Plugin):
    """Base of the plugins: its fields are the model's settings. parent: when the frozen parent is needed; `always`: a
    copy of it is in the model's folder; proposes: whether our block decoder writes the texts, over proposals."""

    parent: ClassVar[Literal["never", "training", "always"]] = "training"
    proposes: ClassVar[bool] = False
    block: int = Field(0, ge=0, description="positions that become final together, tokens; 0: the whole text")
    steps: int = Field(16, ge=1, description="steps of the sampler where a request says nothing, a count")
    sampler: str = Field("euler", description="sampler where a request says nothing")
    guidance: float = Field(1.0, ge=0.0, description="classifier-free guidance where a request says nothing; 1: none")

    def build(self, ground: Ground) -> LatentModel:
        """A new model; the caller has seeded torch. ConfigError where the settings do not fit the ground."""
        raise ValueError(f"latent {type(self).__name__} defines no build")


def report(
    terms: Mapping[str, tuple[Tensor, Tensor | float]], weights: Mapping[str, float], tokens: Tensor
) -> LossReport:
    """The report whose loss is the weighted sum of means over `tokens` (their count, float32 scalar). terms: by name
    (sum, count of what was summed); its mean is what the run's metrics show."""
    total = sum((weights[name] * (value / count) * tokens for name, (value, count) in terms.items()), torch.zeros(()))
    parts = {name: value.detach().float() for name, (value, _) in terms.items()}
    counts = {name: torch.as_tensor(count, dtype=torch.float32) for name, (_, count) in terms.items()}
    assert isinstance(total, Tensor)
    return LossReport(total.float(), tokens.float(), parts, counts)
