# Cola's two networks: a token VAE with a latent per position, and a block-causal DiT that learns its latents' velocity.
# Entry points: TokenVAE, BlockDiT, blocks_behind (block ids with the prompt as an extra block), rule_of.
# What sees what is the block-diffusion rule of the discrete models (core/masks.py); the VAE follows its clean half.
# Letters: B rows, L positions, Q queries, k latent channels, W width, V vocabulary.
"""Networks of Cola."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from hildanext.core.latents.layers import Condition, Sight, Stack, time_features
from hildanext.core.masks import BlockDiffusionRule, additive, document_starts


def blocks_behind(docs: Tensor, block: int, prompts: Tensor) -> Tensor:
    """Block ids [B, L] int64 where the first `prompts` [B, L] positions of each document (constant over it, 0: none)
    are one block more, -1, and the others count from there. Without prompts the grid `per_document` of core/masks.py.
    Source: Cola arXiv:2605.06548, the prompt as an extra block."""
    index = torch.arange(docs.shape[1], device=docs.device)
    behind = index - document_starts(docs) - prompts
    return torch.div(behind, block, rounding_mode="floor").clamp(min=-1)


def rule_of(docs: Tensor, blocks: Tensor) -> BlockDiffusionRule:
    """The block-diffusion rule over [noisy | clean] for given block ids, both [B, L] int64."""
    both = torch.cat([blocks, blocks], 1)
    return BlockDiffusionRule(torch.cat([docs, docs], 1), both, both, docs.shape[1])


def causal_bias(docs: Tensor, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive [B, 1, L, L]: own and earlier blocks of one document, the clean half of the rule."""
    seen = (docs[:, :, None] == docs[:, None, :]) & (blocks[:, :, None] >= blocks[:, None, :])
    return additive(seen[:, None], dtype)


def pair_bias(rule: BlockDiffusionRule, alone: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Additive [B, 1, 2L, 2L] of the rule; alone [B, L] bool: noisy positions that see nothing but their own block, as
    guidance needs them."""
    index = torch.arange(2 * rule.length, device=rule.docs.device)
    rows = torch.arange(rule.docs.shape[0], device=rule.docs.device)
    seen = rule.visible(rows[:, None, None, None], index[:, None], index[None, :])
    if alone is not None:
        cut = torch.cat([alone, torch.zeros_like(alone)], 1)[:, None, :, None] & (index >= rule.length)
        seen = seen & ~cut
    return additive(seen, dtype)


class TokenVAE(nn.Module):
    """Tokens to a diagonal Gaussian [.., k] per position and back to logits. Source: Cola arXiv:2605.06548, stage 1."""

    def __init__(self, vocabulary: int, latent: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.encoder = Stack(layers, width, heads)
        self.moments = nn.Linear(width, 2 * latent)
        self.opening = nn.Linear(latent, width)
        self.decoder = Stack(layers, width, heads)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embed_tokens.weight, std=0.06)

    def encode(self, tokens: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
        """tokens [B, Q] int64 -> mean and log-variance [B, Q, k]; the latter in [-10, 4]."""
        mean, spread = self.moments(self.encoder(self.embed_tokens(tokens), sight)).chunk(2, -1)
        return mean, spread.clamp(-10.0, 4.0)

    def decode(self, latent: Tensor, sight: Sight) -> Tensor:
        """latent [B, Q, k] -> hidden states [B, Q, W], of which lm_head makes logits [B, Q, V]."""
        hidden: Tensor = self.decoder(self.opening(latent), sight)
        return hidden


def divergence(mean: Tensor, spread: Tensor) -> Tensor:
    """KL(N(mean, exp(spread)) || N(0, 1)) [B, Q], nats, summed over the channels.
    Source: Cola arXiv:2605.06548, the KL of its VAE."""
    return 0.5 * (mean**2 + spread.exp() - 1.0 - spread).sum(-1)


class BlockDiT(nn.Module):
    """The velocity of latents at their times, each position with its own. Source: Cola arXiv:2605.06548, stage 2."""

    def __init__(self, latent: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.opening = nn.Linear(latent, width)
        self.clock_1, self.clock_2 = nn.Linear(width, width), nn.Linear(width, width)
        self.stack = Stack(layers, width, heads, condition=width)
        self.closing = nn.Linear(width, latent)
        nn.init.zeros_(self.closing.weight)
        nn.init.zeros_(self.closing.bias)

    def forward(self, latent: Tensor, time: Tensor, sight: Sight) -> Tensor:
        """latent [B, Q, k] at time [B, Q] in [0, 1] (0: clean) -> velocity [B, Q, k]."""
        times, place = torch.unique(time, return_inverse=True)
        features = time_features(times, self.opening.out_features).to(latent.dtype)
        condition = Condition(silu(self.clock_2(silu(self.clock_1(features)))), place)
        out: Tensor = self.closing(self.stack(self.opening(latent), sight, condition))
        return out
