# Likelihood of text: token NLL in one forward, autoregressive NLL, and the block ELBO (core/elbo.py).
# Entry points: token_nll, autoregressive_nll, block_elbo, Estimate, linear_cross_entropy.
# Numbers are nats on scored_positions: learn, not a document's first, so that both kinds of model can be compared.
"""Token likelihoods."""

from __future__ import annotations

import torch
from torch import Tensor

from hildanext.core.elbo import Estimate, block_elbo
from hildanext.core.linear_cross_entropy import TokenScores, linear_cross_entropy, weighted_cross_entropy
from hildanext.core.loss_report import autoregressive_report, scored_positions
from hildanext.core.types import Batch, Denoiser

__all__ = [
    "Estimate", "TokenScores", "autoregressive_nll", "block_elbo", "linear_cross_entropy", "scored_positions",
    "token_nll", "weighted_cross_entropy",
]  # fmt: skip


def token_nll(model: Denoiser, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> TokenScores:
    """Scores [n] of the clean tokens at `select` [B, L] bool given x_t = noisy [B, L], one forward over [x_t ; x_0].
    Differentiable; [MASK] has probability 0. Source: recipe 1.4."""
    features = model.noisy_features(noisy, batch, block, select)
    return linear_cross_entropy(features, model.head(), batch.tokens[select], model.mask_id)


def autoregressive_nll(model: Denoiser, batch: Batch) -> Estimate:
    """NLL of the scored positions under the causal model; exact, no gradient."""
    with torch.no_grad():
        report = autoregressive_report(model, batch)
    return Estimate(float(report.parts["autoregressive"]), int(report.normaliser), 0.0)
