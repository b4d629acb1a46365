# Cola: flow matching over the latents of a token VAE, block after block, under the mask of discrete block diffusion.
# Entry points: Cola (plugin), ColaModel.
# Keys and values of finished blocks lie in the decoder's own store; a prompt is one block more, of any length.
# Letters: B rows, L positions, k latent channels, P prompt tokens.
"""Latent type cola."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from hildanext.core.latent import Draw, Ground, LatentModel, LatentType, Piece, report
from hildanext.core.latents.cola import BlockDiT, TokenVAE, blocks_behind, causal_bias, divergence, pair_bias, rule_of
from hildanext.core.latents.flow import SAMPLERS, evaluations, guided, interpolated, logit_normal, velocity, walked
from hildanext.core.latents.layers import Sight
from hildanext.core.types import Batch, LossReport
from hildanext.decoding.store import StateStore
from hildanext.errors import ConfigError

SPREAD = 1e-5
DENOISED = 4
"""One row in so many is read with masked tokens too."""


class Cola(LatentType):
    """Token VAE (cross-entropy, KL, masked denoising) and block-causal DiT. Source: Cola arXiv:2605.06548."""

    parent: ClassVar[Literal["never", "training", "always"]] = "never"
    block: int = Field(16, ge=1, description="block size, tokens")
    latent: int = Field(16, ge=1, description="channels of a position's latent, a count")
    width: int = Field(0, ge=0, description="width of both networks; 0: that of the parent")
    heads: int = Field(4, ge=1, description="attention heads, a count")
    vae_layers: int = Field(2, ge=1, description="layers of encoder and decoder each, a count")
    layers: int = Field(4, ge=1, description="layers of the DiT, a count")
    beta: float = Field(1e-3, ge=0, description="weight of the KL of the latents to a standard normal")
    denoise: float = Field(0.2, ge=0, description="weight of the tokens masked in the encoder's input")
    masked: float = Field(0.15, gt=0, lt=1, description="share of tokens masked there")
    alone: float = Field(0.2, ge=0, lt=1, description="share of the steps in which the VAE trains alone, at the start")
    prompt: float = Field(0.05, ge=0, le=1, description="share of documents whose beginning is one block more")
    drop: float = Field(
        0.1, ge=0, lt=1, description="share of noised blocks that see no text before them, for guidance"
    )
    time_mean: float = Field(1.0, description="mean of the logit of time; above 0: more noise")
    time_spread: float = Field(1.0, gt=0, description="standard deviation of the logit of time")
    decay: float = Field(0.99, ge=0, lt=1, description="decay of the averages by which latents are standardised")

    def build(self, ground: Ground) -> LatentModel:
        """A new model; token embeddings are the parent's where it is there and as wide."""
        width = self.width or ground.hidden
        if width % (2 * self.heads):
            raise ConfigError(f"latent.model: width {width} is no multiple of 2 x heads ({self.heads}); change one")
        return ColaModel(self, ground, width)


class ColaModel(LatentModel):
    """vae, dit; shift, power [k]: averages of the latents and of their squares, weight: of what they have seen."""

    samplers: ClassVar[tuple[str, ...]] = tuple(SAMPLERS)

    def __init__(self, settings: Cola, ground: Ground, width: int) -> None:
        super().__init__(ground)
        self.settings = settings
        self.vae = TokenVAE(ground.vocabulary, settings.latent, settings.vae_layers, width, settings.heads)
        self.dit = BlockDiT(settings.latent, settings.layers, width, settings.heads)
        for name, value in (("shift", torch.zeros), ("power", torch.ones)):
            self.register_buffer(name, value(settings.latent))
        if ground.parent is not None and ground.hidden == width:
            with torch.no_grad():
                self.vae.embed_tokens.weight.copy_(ground.parent.head())
                self.vae.lm_head.weight.copy_(ground.parent.head())

    def standard(self, latent: Tensor) -> Tensor:
        """Latents with mean 0 and deviation 1 by the averages."""
        shift, power = self.get_buffer("shift"), self.get_buffer("power")
        return (latent - shift) * (power - shift**2).clamp(min=SPREAD).rsqrt()

    def plain(self, latent: Tensor) -> Tensor:
        """The inverse of `standard`."""
        shift, power = self.get_buffer("shift"), self.get_buffer("power")
        return latent * (power - shift**2).clamp(min=SPREAD).sqrt() + shift

    def _seen(self, latent: Tensor, learn: Tensor) -> None:
        found, decay = latent.detach()[learn], self.settings.decay
        for name, value in (("shift", found.mean(0)), ("power", (found**2).mean(0))):
            buffer = self.get_buffer(name)
            buffer.copy_(decay * buffer + (1.0 - decay) * value.to(buffer))

    def loss(self, batch: Batch, done: float, rng: torch.Generator) -> LossReport:
        """Reconstruction + beta KL + denoising, and, behind the share `alone`, the flow of the DiT on latents through
        which no gradient goes back. Source: Cola arXiv:2605.06548."""
        settings, tokens = self.settings, batch.learn.sum().float()
        blocks = blocks_behind(batch.docs, settings.block, self._prompts(batch, rng))
        sight = Sight(batch.positions(), causal_bias(batch.docs, blocks, self.vae.opening.weight.dtype))
        mean, spread = self.vae.encode(batch.tokens, sight)
        draw = torch.randn(mean.shape, generator=rng).to(mean)
        latent = mean + (0.5 * spread).exp() * draw
        terms = {
            "reconstruction": (self._cross(latent, batch, sight, batch.learn), tokens),
            "kl": (divergence(mean, spread)[batch.learn].sum(), tokens),
        }
        if settings.denoise:
            terms["denoise"] = self._denoised(batch, sight, rng)
        if self.training and bool(batch.learn.any()):
            self._seen(latent, batch.learn)
        if done >= settings.alone:
            terms["flow"] = self._flow(self.standard(latent.detach()), batch, blocks, rng)
        weights = {"reconstruction": 1.0, "kl": settings.beta, "denoise": settings.denoise, "flow": 1.0}
        return report(terms, weights, tokens)

    def _denoised(self, batch: Batch, sight: Sight, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randperm(len(batch.tokens), generator=rng)[: max(1, len(batch.tokens) // DENOISED)]
        hidden = torch.rand(batch.tokens.shape, generator=rng) < self.settings.masked
        rows, hidden = rows.to(batch.tokens.device), hidden.to(batch.tokens.device)[rows]
        part = Batch(batch.tokens[rows], batch.learn[rows] & hidden, batch.docs[rows])
        own = replace(sight, positions=sight.positions[rows], mask=None if sight.mask is None else sight.mask[rows])
        latent = self.vae.encode(part.tokens.masked_fill(hidden, self.ground.mask_id), own)[0]
        return self._cross(latent, part, own, part.learn), part.learn.sum().clamp(min=1).float()

    def _prompts(self, batch: Batch, rng: torch.Generator) -> Tensor:
        starts = (batch.positions() == 0).long().cumsum(1) - 1
        size = torch.zeros_like(starts).scatter_add_(1, starts, torch.ones_like(starts))
        chosen = torch.rand(size.shape, generator=rng).to(size.device) < self.settings.prompt
        share = torch.rand(size.shape, generator=rng).to(size.device)
        return ((share * size).long() * chosen).gather(1, starts)

    def _cross(self, latent: Tensor, batch: Batch, sight: Sight, scored: Tensor) -> Tensor:
        logits = self.vae.lm_head(self.vae.decode(latent, sight)[scored])
        return cross_entropy(logits.float(), batch.tokens[scored], reduction="sum")

    def _flow(self, clean: Tensor, batch: Batch, blocks: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        settings, noise = self.settings, torch.randn(clean.shape, generator=rng).to(clean)
        time = self._per_block(logit_normal(blocks.shape, settings.time_mean, settings.time_spread, rng), batch, blocks)
        alone = self._per_block(torch.rand(blocks.shape, generator=rng), batch, blocks) < settings.drop
        found = self.velocity(interpolated(clean, noise, time[..., None]), clean, time, batch, (blocks, alone))
        scored = batch.learn & (blocks >= 0)
        squared = ((found - velocity(clean, noise)) ** 2).mean(-1)[scored].sum()
        return squared, scored.sum().clamp(min=1).float()

    @staticmethod
    def _per_block(values: Tensor, batch: Batch, blocks: Tensor) -> Tensor:
        given = values.to(blocks.device)
        fresh = torch.ones_like(blocks, dtype=torch.bool)
        fresh[:, 1:] = (blocks[:, 1:] != blocks[:, :-1]) | (batch.docs[:, 1:] != batch.docs[:, :-1])
        index = torch.arange(blocks.shape[1], device=blocks.device).expand_as(blocks)
        return given.gather(1, torch.where(fresh, index, 0).cummax(1).values)

    def velocity(
        self, noisy: Tensor, clean: Tensor, time: Tensor, batch: Batch, blocks: tuple[Tensor, Tensor | None]
    ) -> Tensor:
        """The DiT's velocity [B, L, k] of the noisy half of one forward over [noisy | clean]; time [B, L] of the noisy
        half; blocks: their ids, and which noisy positions see no block before theirs (None: each sees them)."""
        ids, alone = blocks
        positions = batch.positions()
        sight = Sight(
            torch.cat([positions, positions], 1), pair_bias(rule_of(batch.docs, ids), alone, noisy.dtype)
        )  # fmt: skip
        both, times = torch.cat([noisy, clean], 1), torch.cat([time, torch.zeros_like(time)], 1)
        found: Tensor = self.dit(both, times, sight)
        return found[:, : noisy.shape[1]]

    def sample(
        self, prompts: Sequence[Sequence[int]], new: int, draw: Draw, rngs: Sequence[torch.Generator]
    ) -> Iterator[Piece]:
        """Block after block behind the prompts. A block costs the sampler's evaluations (a guided one is one forward),
        one forward that keeps its keys, and one of the VAE's decoder."""
        yield from ColaSampler(self, prompts, draw, rngs).pieces(-(-new // self.settings.block))


class ColaSampler:
    """Texts that are drawn together; one slot of the store each. Layers of the DiT come first in it, then the VAE's."""

    def __init__(
        self, model: ColaModel, prompts: Sequence[Sequence[int]], draw: Draw, rngs: Sequence[torch.Generator]
    ) -> None:
        self.model, self.prompts, self.draw, self.rngs = model, prompts, draw, rngs
        self.device, self.block = model.vae.opening.weight.device, model.settings.block
        self.slots = list(range(len(prompts)))
        self.lengths = [len(prompt) for prompt in prompts]
        self.store = StateStore()

    def pieces(self, blocks: int) -> Iterator[Piece]:
        """The tokens of `blocks` blocks."""
        longest = max(self.lengths) + blocks * self.block
        self.store.reserve(len(self.slots), longest)
        for _ in self.slots:
            self.store.add()
        spent = self._prefill()
        for _ in range(blocks):
            yield Piece(self._block(), spent + evaluations(self.draw.steps, self.draw.sampler) + 2)
            spent = 0

    def _prefill(self) -> int:
        width = max(self.lengths)
        if not width:
            return 0
        tokens = torch.zeros(len(self.slots), width, dtype=torch.long)
        for row, prompt in enumerate(self.prompts):
            tokens[row, : len(prompt)] = torch.tensor(list(prompt), dtype=torch.long)
        own = torch.arange(width) < torch.tensor(self.lengths)[:, None]
        own[:, 0] = True  # a row of an empty prompt sees its first cell: a softmax over nothing is no number
        mask = own[:, None, None, :].to(self.device)
        positions = torch.arange(width, device=self.device).expand(len(self.slots), -1)
        latent = self.model.vae.encode(tokens.to(self.device), Sight(positions, mask))[0]
        self._kept(self.model.standard(latent), [0] * len(self.slots), self.lengths)
        for slot, length in zip(self.slots, self.lengths, strict=True):
            self.store.commit(slot, length)
        return 2

    def _block(self) -> list[list[int]]:
        size, count = self.block, len(self.slots)
        starts, sizes = list(self.store.lengths), [size] * count
        noise = torch.stack([torch.randn(size, self.model.settings.latent, generator=rng) for rng in self.rngs])
        noise = noise.to(self.device, self.model.vae.opening.weight.dtype)

        def field(latent: Tensor, time: float) -> Tensor:
            found = self._velocity(latent, time, starts, sizes)
            if self.draw.guidance == 1.0:
                return found
            return guided(found, self._velocity(latent, time, [], sizes), self.draw.guidance)

        latent = walked(field, noise, self.draw.steps, self.draw.sampler)
        hidden = self._kept(latent, starts, sizes)
        scores = self.model.vae.lm_head(hidden).float()
        scores[..., self.model.ground.mask_id] = -torch.inf
        for slot in self.slots:
            self.store.commit(slot, size)
        tokens: list[list[int]] = scores.argmax(-1).tolist()
        return tokens

    def _velocity(self, latent: Tensor, time: float, starts: list[int], sizes: list[int]) -> Tensor:
        times = torch.full(latent.shape[:2], time, device=self.device)
        sight = self._sight(starts, sizes, 0) if starts else Sight(self._places([0] * len(sizes), sizes))
        found: Tensor = self.model.dit(latent, times, sight)
        return found

    def _kept(self, latent: Tensor, starts: list[int], sizes: list[int]) -> Tensor:
        self.model.dit(latent, torch.zeros(latent.shape[:2], device=self.device), self._sight(starts, sizes, 0))
        return self.model.vae.decode(self.model.plain(latent), self._sight(starts, sizes, self.model.settings.layers))

    def _places(self, starts: list[int], sizes: list[int]) -> Tensor:
        return torch.tensor(starts, device=self.device)[:, None] + torch.arange(max(sizes), device=self.device)

    def _sight(self, starts: list[int], sizes: list[int], first: int) -> Sight:
        view = self.store.view(self.slots, starts, sizes)
        stops = torch.tensor([start + size for start, size in zip(starts, sizes, strict=True)])
        seen = torch.arange(view.keys) < stops[:, None]
        seen[:, 0] = True
        mask = seen[:, None, None, :].to(self.device)
        return Sight(self._places(starts, sizes), mask, None, view, first)
