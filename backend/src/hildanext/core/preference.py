# Losses on whole sequences through their block bound: DPO on pairs, and the clipped ratio of block policy optimisation.
# Entry points: draw_views, sequence_bounds, dpo_loss, ratio_loss.
# Model and reference must score the SAME views: draw once, score with both. B = -(ELBO-weighted nll) <= 0; the reports
# print the opposite sign, which would train backwards.
"""Preference and policy losses from shared masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hildanext.config.noise import NoiseConfig
from hildanext.core.likelihood import token_nll
from hildanext.core.noise import Corruption, corrupt
from hildanext.core.types import Batch, Denoiser

SEQUENCE_NOISE = NoiseConfig(replace=0.0)


def draw_views(
    model: Denoiser, batch: Batch, block: int, rng: torch.Generator, count: int = 1
) -> tuple[Corruption, ...]:
    """`count` views masked at random, to be scored by every model that is compared. Source:
    LLaDA2.0 arXiv:2512.15745 eq. 7; sharing them is ours."""
    return tuple(corrupt(SEQUENCE_NOISE, model, batch, block, rng)[0] for _ in range(count))


def sequence_bounds(model: Denoiser, batch: Batch, block: int, views: tuple[Corruption, ...]) -> Tensor:
    """B(x) [rows] <= 0: minus the ELBO-weighted nll of each row's masked tokens, mean over views; differentiable.
    Source: LLaDA2.0 arXiv:2512.15745 eq. 7, sign of the text."""
    rows = torch.arange(batch.tokens.shape[0], device=batch.tokens.device)[:, None].expand_as(batch.tokens)
    bounds = []
    for view in views:
        nll = token_nll(model, view.tokens, batch, block, view.m2t).nll
        weighted = nll * view.elbo[view.m2t].to(nll.dtype)
        bounds.append(weighted.new_zeros(len(rows)).index_add(0, rows[view.m2t], -weighted))
    return torch.stack(bounds).mean(dim=0)


def dpo_loss(won: tuple[Tensor, Tensor], lost: tuple[Tensor, Tensor], beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta [dB(won) - dB(lost)]) per pair, dB = B(model) - B(reference); won, lost: (model's, reference's)
    bounds, [pairs] each. ln 2 where model and reference agree. Source: LLaDA2.0 arXiv:2512.15745 eq. 8."""
    return -functional.logsigmoid(beta * ((won[0] - won[1]) - (lost[0] - lost[1])))


def ratio_loss(
    new: Tensor, old: Tensor, advantage: Tensor, clip: tuple[float, float] = (0.2, 0.2)
) -> tuple[Tensor, Tensor]:
    """(-min(rho A, clamp(rho, 1 - clip[0], 1 + clip[1]) A), rho), [rows] each; rho = exp(new - old) from bounds on the
    same views. Source: LLaDA2.1 arXiv:2602.08676 eq. 4-5."""
    ratio = (new - old.detach()).exp()
    clipped = ratio.clamp(1 - clip[0], 1 + clip[1])
    return -torch.minimum(ratio * advantage, clipped * advantage), ratio
