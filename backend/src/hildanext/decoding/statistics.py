# From logits to what a policy may look at: token, confidence, entropy, runner-up; greedy or sampled.
# Entry points: Sampling, statistics, guided.
# Letters: n positions, V vocabulary. Rows are worked through in chunks so that no second [n, V] tensor exists.
"""Statistics of the predicted distributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hildanext.core.types import Stats

CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Sampling:
    """How a token is taken from a distribution. temperature 0: the argmax; top_k 0 and top_p 1: no cut; cfg_scale 0:
    no guidance; repetition_penalty: logits taken off the token to the left; confidence of the 'sampled' (after
    temperature and cuts) or the 'raw' distribution. Source: recipe 6 (conventions A raw, B sampled)."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 0.0
    repetition_penalty: float = 0.0
    confidence: str = "sampled"


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """u + (scale + 1) (c - u) [n, V]; scale 0 gives the conditional logits. Source: LLaDA, recipe 6.3."""
    return unconditional + (scale + 1.0) * (conditional - unconditional)


def statistics(
    logits: Tensor, mask_id: int, sampling: Sampling, needs: frozenset[str], uniform: Tensor | None, left: Tensor | None
) -> Stats:
    """Statistics [n] of logits [n, V], with [MASK] excluded. needs: of {'entropy', 'second'}; uniform [n] in [0, 1)
    decides the samples (temperature > 0); left [n]: the token to the left, -1 for none (repetition penalty).
    Ties go to the lowest token id."""
    size = max(1, CHUNK_ELEMENTS // logits.shape[1])
    parts = []
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        scores = _penalised(logits[rows].float(), mask_id, sampling, None if left is None else left[rows])
        parts.append(_chunk(scores, sampling, needs, None if uniform is None else uniform[rows]))
    return Stats(*(_joined([part[index] for part in parts]) for index in range(4)))  # type: ignore[arg-type]


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _penalised(scores: Tensor, mask_id: int, sampling: Sampling, left: Tensor | None) -> Tensor:
    scores = scores.clone() if sampling.repetition_penalty else scores
    if sampling.repetition_penalty and left is not None:
        index = left.clamp(min=0).unsqueeze(1)
        amount = torch.where(left >= 0, sampling.repetition_penalty, 0.0).to(scores.dtype).unsqueeze(1)
        scores.scatter_add_(1, index, -amount)
    scores[:, mask_id] = -torch.inf
    return scores


def _chunk(
    scores: Tensor, sampling: Sampling, needs: frozenset[str], uniform: Tensor | None
) -> tuple[Tensor | None, ...]:
    if sampling.temperature == 0.0:
        best = scores.argmax(dim=1)
        return best, *_measures(scores, best, needs)
    if uniform is None:
        raise ValueError("statistics: temperature > 0 needs uniform numbers")
    cut = _cut(scores / sampling.temperature, sampling.top_k, sampling.top_p)
    best = _draw(cut, uniform)
    return best, *_measures(scores if sampling.confidence == "raw" else cut, best, needs)


def _measures(scores: Tensor, best: Tensor, needs: frozenset[str]) -> tuple[Tensor | None, ...]:
    total = scores.logsumexp(dim=1)
    probability = (scores.gather(1, best.unsqueeze(1)).squeeze(1) - total).exp()
    entropy = _entropy(scores, total) if "entropy" in needs else None
    second = (scores.topk(2, dim=1).values[:, 1] - total).exp() if "second" in needs else None
    return probability, entropy, second


def _entropy(scores: Tensor, total: Tensor) -> Tensor:
    log_probability = scores - total.unsqueeze(1)
    return -(log_probability.exp() * log_probability.clamp(min=-1e4)).sum(dim=1)


def _cut(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    if top_k and top_k < scores.shape[1]:
        scores = scores.masked_fill(scores < scores.topk(top_k, dim=1).values[:, -1:], -torch.inf)
    if top_p < 1.0:
        ordered, index = scores.sort(dim=1, descending=True, stable=True)
        probability = ordered.softmax(dim=1)
        beyond = probability.cumsum(dim=1) - probability >= top_p
        scores = scores.masked_fill(torch.zeros_like(beyond).scatter(1, index, beyond), -torch.inf)
    return scores


def _draw(scores: Tensor, uniform: Tensor) -> Tensor:
    cumulative = scores.double().softmax(dim=1).cumsum(dim=1)
    level = uniform.to(cumulative).unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True).squeeze(1).clamp(max=scores.shape[1] - 1)
