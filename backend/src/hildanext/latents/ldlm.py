# LDLM: diffusion over a few latents of a whole text, which a Perceiver makes of a frozen parent's hidden states.
# Entry points: Ldlm (plugin), LdlmModel.
# Every document of a row is a text of its own. A prompt is what the denoiser reads of the parent's states, no part of
# the latents: positions of the prompt are drawn with the rest and thrown away.
# Letters: N texts, L positions, D width of the parent's states, M latents of K channels, P prompt positions.
"""Latent type ldlm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.batches import document_batch
from hildanext.core.latent import Draw, Ground, LatentModel, LatentType, Piece, report
from hildanext.core.latents.ldlm.gates import ramp
from hildanext.core.latents.ldlm.network import Draws, LatentNetwork, Shape, terms
from hildanext.core.latents.ldlm.perceiver import normalised
from hildanext.core.latents.ldlm.samplers import SAMPLERS, denoised
from hildanext.core.latents.ldlm.schedule import Tangent
from hildanext.core.types import Batch, LossReport
from hildanext.errors import ConfigError


class Ldlm(LatentType):
    """Perceiver encoder of a layer's states, DiT, Perceiver decoder and token decoder, trained together.
    Source: LDLM arXiv:2605.07933; prompts, the normalisations and reading backwards in the decoders are ours."""

    parent: ClassVar[Literal["never", "training", "always"]] = "always"
    sampler: str = Field("ddim", description="sampler where a request says nothing")
    layer: int = Field(-3, description="layer of the parent whose states are encoded, from 1; -1: the last one")
    length: int = Field(256, ge=2, description="longest text, tokens; a longer document is cut")
    latents: int = Field(32, ge=1, description="latents of a text, a count")
    size: int = Field(64, ge=1, description="channels of a latent, a count")
    encoder: int = Field(2, ge=1, description="layers of the Perceiver encoder, a count")
    dit: int = Field(4, ge=1, description="layers of the DiT, a count")
    decoder: int = Field(2, ge=1, description="layers of the Perceiver decoder, a count")
    tokens: int = Field(1, ge=0, description="layers of the token decoder, a count")
    width: int = Field(128, ge=2, multiple_of=2, description="width of the DiT")
    head: int = Field(32, ge=1, description="channels of an attention head, a count")
    d: float = Field(3.0, gt=0, description="of the tangent schedule; more is more noise at the same time")
    sigma: float = Field(3.0, ge=0, description="standard deviation of the noise on latents decoded in training")
    told: float = Field(0.5, ge=0, le=1, description="share of the steps with self-conditioning")
    prompted: float = Field(0.5, ge=0, le=1, description="share of the texts whose beginning the DiT is given; 0: none")
    centre: float = Field(0.8, description="share of the run at which half of the DiT's gradient reaches the encoder")
    slope: float = Field(10.0, gt=0, description="slope of that ramp, per run")
    diffusion_weight: float = Field(1.0, ge=0, description="weight of the squared error of latents")
    states_weight: float = Field(1.0, ge=0, description="weight of the squared error of decoded states")
    tokens_weight: float = Field(1.0, ge=0, description="weight of the token decoder's cross-entropy")

    def build(self, ground: Ground) -> LatentModel:
        """A new model. ConfigError for a block, sizes that do not divide, a layer or length that the parent lacks."""
        if self.block:
            raise ConfigError(f"latent.model.block {self.block}: ldlm draws whole texts; leave it at 0")
        if self.width % self.head or ground.hidden % self.head:
            raise ConfigError(
                f"latent.model.head {self.head}: does not divide width {self.width} and the parent's {ground.hidden}"
            )
        if not -ground.layers <= self.layer <= ground.layers or self.layer == 0:
            raise ConfigError(f"latent.model.layer {self.layer}: the parent has 1 to {ground.layers}, or -1 down")
        if ground.window and self.length > ground.window:
            raise ConfigError(f"latent.model.length {self.length}: the parent reads {ground.window} tokens at most")
        return LdlmModel(self, ground)


class LdlmModel(LatentModel):
    """network: all that trains, with the running means of loss and latents as buffers."""

    samplers: ClassVar[tuple[str, ...]] = tuple(SAMPLERS)

    def __init__(self, settings: Ldlm, ground: Ground) -> None:
        super().__init__(ground)
        self.settings, self.window = settings, settings.length
        self.layer = settings.layer if settings.layer > 0 else ground.layers + 1 + settings.layer
        names = ("length", "latents", "size", "encoder", "dit", "decoder", "tokens", "width", "head")
        shape = Shape(ground.hidden, ground.vocabulary, **{name: getattr(settings, name) for name in names})
        self.network = LatentNetwork(shape, Tangent(settings.d))

    def states(self, batch: Batch) -> Tensor:
        """Normalised states [B, L, D] of the frozen parent's layer. ValueError without a parent."""
        if self.ground.states is None:
            raise ValueError("ldlm: its states are the parent's, and there is none")
        return normalised(self.ground.states(batch, self.layer))

    def loss(self, batch: Batch, done: float, rng: torch.Generator) -> LossReport:
        """Squared errors of latents and of states, means over texts, and cross-entropy of the tokens, a mean over them;
        `right`: share of tokens the decoder names. Source: LDLM arXiv:2605.07933."""
        settings, (place, text) = self.settings, texts_of(batch, self.settings.length)
        states, tokens = self.states(batch).flatten(0, 1)[place], batch.tokens.flatten()[place]
        draws = Draws.of(rng, self.network.shape, text.sum(1), settings.prompted, settings.told)
        how = (ramp(done, settings.centre, settings.slope), settings.sigma)
        found = terms(self.network, states, tokens, text, draws, how)
        count, every = float(len(text)), text.sum().float()
        parts: dict[str, tuple[Tensor, Tensor | float]] = {
            "diffusion": (found.diffusion.sum(), count), "states": (found.states.sum(), count),
            "tokens": (found.nll.sum(), every), "right": (found.right.sum().float(), every),
        }  # fmt: skip
        weights = {name: getattr(settings, f"{name}_weight") for name in ("diffusion", "states", "tokens")}
        return report(parts, {**weights, "right": 0.0}, batch.learn.sum().float())

    def sample(
        self, prompts: Sequence[Sequence[int]], new: int, draw: Draw, rngs: Sequence[torch.Generator]
    ) -> Iterator[Piece]:
        """One piece. forwards: those of the DiT (two of a guided step), one of each decoder, and one of the parent
        where there is a prompt. What a text has no positions for is filled with the end token."""
        network, shape, device = self.network, self.network.shape, next(self.parameters()).device
        sizes = (shape.latents, shape.size)
        noise = torch.stack([torch.randn(sizes, generator=rng) for rng in rngs]).to(device, self._dtype)
        states, given = self._prompt(prompts)
        guided = draw.guidance != 1 and bool(given.any())

        def predict(noised: Tensor, time: Tensor, before: Tensor) -> Tensor:
            found: Tensor = network.dit(noised, time, before, states, given)
            if not guided:
                return found
            free = network.dit(noised, time, before, states, torch.zeros_like(given))
            whole: Tensor = free + draw.guidance * (found - free)
            return whole

        latents = denoised(predict, noise, draw.steps, network.schedule, draw.sampler)
        length = min(shape.length, max(len(prompt) for prompt in prompts) + new)
        logits = network.tokens(network.decoder(latents, length))
        logits[..., self.ground.mask_id] = float("-inf")
        best, end = logits.argmax(-1).tolist(), self.ground.ends[0]
        tokens = [(row[len(prompt) :] + [end] * new)[:new] for row, prompt in zip(best, prompts, strict=True)]
        yield Piece(tokens, draw.steps * (2 if guided else 1) + 2 + bool(given.any()))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _prompt(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        device = next(self.parameters()).device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(lengths.max())
        if not longest:
            nothing = torch.zeros(len(prompts), 1, self.ground.hidden, device=device, dtype=self._dtype)
            return nothing, lengths[:, None] > 0
        rows = [(list(prompt) or [self.ground.ends[0]], 0) for prompt in prompts]
        states = self.states(document_batch(rows, self.ground.ends[0]).to(device))[:, : self.settings.length]
        return states.to(self._dtype), torch.arange(states.shape[1], device=device) < lengths[:, None]


def texts_of(batch: Batch, length: int) -> tuple[Tensor, Tensor]:
    """(place [N, L] int64 into the flattened rows, text [N, L] bool) of the documents that hold a learned token, each
    from its beginning, at most `length` tokens; L: the longest. ValueError where there is none."""
    rows, columns = batch.docs.shape
    first = batch.positions() == 0
    starts = first.flatten().nonzero()[:, 0]
    sizes = torch.diff(starts, append=starts.new_tensor([rows * columns]))
    number = first.flatten().long().cumsum(0) - 1
    learned = torch.zeros_like(sizes).index_add_(0, number, batch.learn.flatten().long()) > 0
    if not bool(learned.any()):
        raise ValueError("ldlm: no document of these rows has a learned token")
    starts, sizes = starts[learned], sizes[learned].clamp(max=length)
    steps = torch.arange(int(sizes.max()), device=starts.device)
    text = steps < sizes[:, None]
    return torch.where(text, starts[:, None] + steps, starts[:, None]), text
