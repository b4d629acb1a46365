# From logits to what a policy may look at: token, confidence, entropy, runner-up; greedy or sampled.
# Entry points: Sampling, Bias, statistics, guided, likeliest.
# Letters: n positions, V vocabulary. Rows are worked through in chunks so that no second [n, V] tensor exists.
"""Statistics of the predicted distributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hildanext.config.decode import COLDEST
from hildanext.core.head import draw_tokens, exclude_token, kept_scores, row_slices
from hildanext.core.types import Stats

LARGE, PART = 4096, 256
RANKED = 4
Chunk = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""From this vocabulary on the likeliest token is looked for in parts of this size."""


@dataclass(frozen=True)
class Sampling:
    """How a token is taken from a distribution. temperature below 1e-5: the argmax; top_k 0 and top_p 1: no cut;
    cfg_scale 0: no guidance; confidence: the drawn token's probability in the 'raw' distribution
    (LLaDA arXiv:2502.09992) or in the 'sampled' one, after temperature and cuts (LLaDA2.0 arXiv:2512.15745)."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 0.0
    confidence: str = "raw"

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature < COLDEST


@dataclass(frozen=True)
class Bias:
    """Amounts [n, k] to add to the logits of tokens [n, k] int64."""

    tokens: Tensor
    amounts: Tensor

    def at(self, rows: Tensor | slice) -> Bias:
        """The bias of some rows."""
        return Bias(self.tokens[rows], self.amounts[rows])


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """u + (scale + 1) (c - u) [n, V]; scale 0 gives the conditional logits. Source: LLaDA arXiv:2502.09992,
    unsupervised guidance."""
    return unconditional + (scale + 1.0) * (conditional - unconditional)


def statistics(
    logits: Tensor, mask_id: int, sampling: Sampling, needs: frozenset[str], uniform: Tensor | None, bias: Bias | None
) -> Stats:
    """Statistics [n] of logits [n, V], with [MASK] excluded. needs: of {'entropy', 'second', 'ranked'}; uniform [n] in
    [0, 1) decides the samples (unless greedy); bias is added first. float32 logits are overwritten. Ties go to the
    lowest id. Of a drawn token that is not the likeliest, entropy is at least its surprisal and second the
    likeliest's."""
    chunks = list(row_slices(logits.shape[0], logits.shape[1], copies=4))
    if len(chunks) < 2:
        return Stats(*_chunk(_prepared(logits, mask_id, bias), sampling, needs, uniform))
    parts = []
    for rows in chunks:
        scores = _prepared(logits[rows], mask_id, None if bias is None else bias.at(rows))
        parts.append(_chunk(scores, sampling, needs, None if uniform is None else uniform[rows]))
    return Stats(*(_joined([part[index] for part in parts]) for index in range(6)))  # type: ignore[arg-type]


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _prepared(logits: Tensor, mask_id: int, bias: Bias | None) -> Tensor:
    scores = logits.float()
    if bias is not None:
        scores.scatter_add_(1, bias.tokens.to(scores.device), bias.amounts.to(scores))
    return exclude_token(scores, mask_id)


def _chunk(scores: Tensor, sampling: Sampling, needs: frozenset[str], uniform: Tensor | None) -> Chunk:
    if sampling.greedy and not needs and scores.shape[1] < LARGE and scores.device.type == "cpu":
        highest, top = scores.max(dim=1)  # on the CPU the lowest id of equals, as argmax
        return top, (highest - scores.logsumexp(dim=1)).exp_(), None, None, None, None
    top = likeliest(scores)
    if sampling.greedy:
        return top, *_measures(scores, top, top, needs), *_ranked(scores, needs)
    if uniform is None:
        raise ValueError("statistics: temperature > 0 needs uniform numbers")
    cut = kept_scores(scores, sampling.temperature, sampling.top_k, sampling.top_p)
    best = draw_tokens(cut, uniform)
    read = scores if sampling.confidence == "raw" else cut
    return best, *_measures(read, best, top, needs), *_ranked(read, needs)


def _ranked(scores: Tensor, needs: frozenset[str]) -> tuple[Tensor | None, Tensor | None]:
    if "ranked" not in needs:
        return None, None
    found = scores.topk(RANKED, dim=1)
    return found.indices, (found.values - scores.logsumexp(dim=1, keepdim=True)).exp()


def likeliest(scores: Tensor) -> Tensor:
    """scores [n, V] -> argmax [n] int64, the lowest id of equals. On the CPU argmax takes one entry at a time
    and amax many: the part that holds the maximum is found first."""
    vocabulary = scores.shape[1]
    if vocabulary < LARGE or scores.device.type != "cpu":
        return scores.argmax(dim=1)
    whole = vocabulary // PART * PART
    tops = scores[:, :whole].view(scores.shape[0], whole // PART, PART).amax(dim=2)
    if whole < vocabulary:
        tops = torch.cat([tops, scores[:, whole:].amax(dim=1, keepdim=True)], dim=1)
    first = tops.argmax(dim=1) * PART
    places = (first.unsqueeze(1) + torch.arange(PART)).clamp_(max=vocabulary - 1)
    return first + scores.gather(1, places).argmax(dim=1)


def _measures(
    scores: Tensor, best: Tensor, top: Tensor, needs: frozenset[str]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    total = scores.logsumexp(dim=1)
    logs = scores.gather(1, best.unsqueeze(1)).squeeze(1) - total
    entropy, second = None, None
    taken = best == top if needs else best
    if "entropy" in needs:
        mean = _entropy(scores, total)
        entropy = torch.where(taken, mean, torch.maximum(mean, -logs))
    if "second" in needs:
        first, runner_up = scores.topk(2, dim=1).values.unbind(dim=1)
        second = (torch.where(taken, runner_up, first) - total).exp()
    return logs.exp(), entropy, second


def _entropy(scores: Tensor, total: Tensor) -> Tensor:
    log_probability = scores - total.unsqueeze(1)
    return -(log_probability.exp() * log_probability.clamp(min=-1e4)).sum(dim=1)
