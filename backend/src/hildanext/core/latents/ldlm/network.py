# All that is trained of a latent diffusion language model, and its three losses in one forward.
# Entry points: Shape, LatentNetwork, Draws, Terms, terms.
# The encoder gets the gradient of the reconstruction, and gamma times that of the diffusion; the token decoder reads
# states whose gradient is stopped. Letters: B texts, L positions, D state width, M latents of K channels, V vocabulary.
"""The network of LDLM and its training forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hildanext.core.latents.ldlm.attention import ReadingLayer, visible
from hildanext.core.latents.ldlm.dit import DiT
from hildanext.core.latents.ldlm.gates import gated
from hildanext.core.latents.ldlm.perceiver import Decoder, Encoder
from hildanext.core.latents.ldlm.schedule import Tangent
from hildanext.core.latents.ldlm.times import AdaptiveTimes, stratified


@dataclass(frozen=True)
class Shape:
    """Sizes. states: width D of the parent's states; vocabulary V; length: positions of a text at most; latents M of
    size K; encoder, dit, decoder, tokens: layers of the parts; width: of the DiT; head: channels of a head."""

    states: int
    vocabulary: int
    length: int = 256
    latents: int = 32
    size: int = 64
    encoder: int = 2
    dit: int = 4
    decoder: int = 2
    tokens: int = 1
    width: int = 128
    head: int = 32


class TokenDecoder(nn.Module):
    """Logits of the token at each position from decoded states, which it reads backwards only.
    Source: arXiv:2605.07933 (token decoder)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        heads = shape.states // shape.head
        self.layers = nn.ModuleList(ReadingLayer(shape.states, heads, False) for _ in range(shape.tokens))
        self.norm, self.out = nn.LayerNorm(shape.states), nn.Linear(shape.states, shape.vocabulary)

    def forward(self, states: Tensor) -> Tensor:
        """[B, L, V] of states [B, L, D]."""
        mask = visible(None, states.shape[1], True, states.device)
        for layer in self.layers:
            states = layer(states, None, mask)
        logits: Tensor = self.out(self.norm(states))
        return logits


class LatentNetwork(nn.Module):
    """encoder: states -> latents; dit: noised latents -> latents; decoder: latents -> states; tokens: states -> logits;
    times: the running means of the diffusion loss. Source: arXiv:2605.07933."""

    def __init__(self, shape: Shape, schedule: Tangent) -> None:
        super().__init__()
        self.shape, self.schedule = shape, schedule
        sizes = (shape.latents, shape.size)
        heads = shape.states // shape.head
        self.encoder = Encoder(shape.states, sizes, shape.length, shape.encoder, heads)
        self.decoder = Decoder(shape.states, sizes, shape.length, shape.decoder, heads)
        self.dit = DiT(shape.states, sizes, shape.length, shape.dit, shape.width, shape.width // shape.head)
        self.tokens = TokenDecoder(shape)
        self.times = AdaptiveTimes()


@dataclass(frozen=True)
class Draws:
    """What a training forward draws of B texts. uniform [B] in [0, 1): of the times; noise, decoding [B, M, K] normal:
    of the diffusion and of the decoder's input; prompts [B] int: states of the text that the denoiser is given; own:
    whether it is told its own prediction."""

    uniform: Tensor
    noise: Tensor
    decoding: Tensor
    prompts: Tensor
    own: bool

    @classmethod
    def of(cls, rng: torch.Generator, shape: Shape, lengths: Tensor, prompted: float, told: float) -> Draws:
        """From rng, a generator of the CPU; lengths [B]: tokens of each text; prompted, told: the probabilities of a
        prompt, of uniform length below the text's, and of self-conditioning. Source: arXiv:2605.07933; prompts are
        ours."""
        count, sizes = len(lengths), (len(lengths), shape.latents, shape.size)
        uniform = stratified(count, torch.rand((), generator=rng))
        noise, decoding = (torch.randn(sizes, generator=rng) for _ in range(2))
        given = torch.rand(count, generator=rng) < prompted
        prompts = (torch.rand(count, generator=rng) * (lengths.cpu() - 1)).long() + 1
        own = bool(torch.rand((), generator=rng) < told)
        device = lengths.device
        prompts = torch.where(given, prompts, 0)
        return cls(uniform.to(device), noise.to(device), decoding.to(device), prompts.to(device), own)


@dataclass(frozen=True)
class Terms:
    """The three losses of B texts. diffusion, states [B]: mean squared errors of latents and of states, the latter over
    a text's own positions; nll [B]: summed over its tokens; right [B]: tokens that the largest logit names."""

    diffusion: Tensor
    states: Tensor
    nll: Tensor
    right: Tensor


def terms(
    network: LatentNetwork, states: Tensor, tokens: Tensor, text: Tensor, draws: Draws, how: tuple[float, float]
) -> Terms:
    """One training forward. states [B, L, D], normalised, of the frozen parent; tokens [B, L]; text [B, L] bool; how:
    (gamma, sigma of the noise on what is decoded). The means by bin of `network.times` learn of it where the network
    is in training. Source: arXiv:2605.07933 (joint loss)."""
    gamma, sigma = how
    latents = network.encoder(states, text)
    found = network.decoder(latents + sigma * draws.decoding, states.shape[1])
    logits = network.tokens(found.detach())
    diffusion = _diffusion(network, gated(latents, gamma), states, draws)
    error = (found - states).square().mean(dim=2)
    nll = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none").view_as(text)
    return Terms(
        diffusion,
        (error * text).sum(1) / text.sum(1),
        (nll * text).sum(1),
        ((logits.argmax(-1) == tokens) & text).sum(1),
    )  # fmt: skip


def _diffusion(network: LatentNetwork, latents: Tensor, states: Tensor, draws: Draws) -> Tensor:
    times = network.times.draw(draws.uniform)
    noised = network.schedule.noised(latents, draws.noise, times)
    longest = max(1, int(draws.prompts.max()))
    prompt = states[:, :longest]
    given = torch.arange(longest, device=states.device) < draws.prompts[:, None]
    before = torch.zeros_like(noised)
    if draws.own:
        with torch.no_grad():
            before = network.dit(noised, times, before, prompt, given)
    loss: Tensor = (network.dit(noised, times, before, prompt, given) - latents).square().mean(dim=(1, 2))
    if network.training:
        network.times.update(times, loss.detach())
    return loss
