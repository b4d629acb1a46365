# From features to logits in chunks of rows: how many rows, which slices, float logits without [MASK], tokens drawn.
# Entry points: HeadOptions, chunk_rows, even_rows, row_slices, float_logits, exclude_token, kept_scores, draw_tokens,
# sample_tokens, HeadSums (gradients of features and matrix, chunk by chunk), same_dtype.
# The losses, the divergence, the sampler and the decoder's statistics all go through here, so no [n, V] tensor is
# made twice and [MASK] is excluded in one way. Letters: n positions, D width, V vocabulary.
"""The output matrix in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24
LEAST_ROWS = 16
# finite: minus infinity times probability zero is not a number
EXCLUDED = -1e30


@dataclass(frozen=True)
class HeadOptions:
    """exclude: an id whose logit counts as minus infinity, or None; smoothing: label smoothing in [0, 1) over the
    other ids; chunk: rows at a time, 0 chooses."""

    exclude: int | None = None
    smoothing: float = 0.0
    chunk: int = 0


PLAIN = HeadOptions()


def chunk_rows(vocabulary: int, chunk: int = 0, copies: int = 1) -> int:
    """Rows per chunk: `chunk`, or as many as keep `copies` float32 buffers at 2^24 elements (64 MiB) together, at least
    16. copies: how many such buffers a caller holds for a row that the losses hold one for."""
    return chunk if chunk > 0 else max(LEAST_ROWS, CHUNK_ELEMENTS // (copies * vocabulary))


def even_rows(count: int, vocabulary: int, chunk: int = 0) -> int:
    """`count` rounded up so that the last chunk has one of few sizes, at most a sixteenth more (16 at least); as it is
    under a `chunk` that was asked for. oneDNN keeps kernels and scratch memory for every shape it has met, a thousand
    of them, and the number of scored positions differs at every step of a run."""
    whole, rest = divmod(count, chunk_rows(vocabulary, chunk))
    if chunk > 0 or rest == 0:
        return count
    step = max(LEAST_ROWS, (1 << rest.bit_length()) >> 5)
    return count - rest + min(chunk_rows(vocabulary), -(-rest // step) * step)


def row_slices(count: int, vocabulary: int, chunk: int = 0, copies: int = 1) -> Iterator[slice]:
    """The slices of `count` rows, in order, chunk_rows at a time."""
    rows = chunk_rows(vocabulary, chunk, copies)
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def float_logits(features: Tensor, weight: Tensor, exclude: int | None = None) -> Tensor:
    """features [n, D] @ weight [V, D] transposed: [n, V] float32, or float64 of float64 features; `exclude` as in
    exclude_token."""
    logits = torch.mm(features, weight.T)
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    return exclude_token(logits, exclude)


def exclude_token(logits: Tensor, token: int | None) -> Tensor:
    """The logits [n, V], overwritten so that `token` has probability 0; as they are where it is None. Of [MASK] it is
    the first half of SUBS. Source: MDLM arXiv:2406.07524, SUBS parameterisation."""
    if token is not None:
        logits.select(1, token).fill_(EXCLUDED)
    return logits


def same_dtype(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Features and matrix in the dtype their product is computed in, autocast's where it is on; cut off from what made
    them where no gradient is wanted."""
    kind = features.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype
    if not torch.is_grad_enabled():
        features, weight = features.detach(), weight.detach()
    return features.to(dtype), weight.to(dtype)


class HeadSums:
    """The gradients of features [n, D] and weight [V, D], of those that are wanted, from gradients of their logits."""

    def __init__(self, features: Tensor, weight: Tensor, wanted: tuple[bool, ...]) -> None:
        self.features = torch.empty_like(features) if wanted[0] else None
        self.weight = torch.zeros_like(weight) if wanted[1] else None

    def add(self, gradient: Tensor, features: Tensor, weight: Tensor, rows: slice) -> None:
        """Take in d loss / d logits [rows, V] of a chunk."""
        gradient = gradient.to(features.dtype)
        if self.features is not None:
            torch.mm(gradient, weight, out=self.features[rows])
        if self.weight is not None:
            self.weight.addmm_(gradient.T, features[rows])

    def scaled(self, outer: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Both, times the gradient `outer` of the sum they were made for; in place, so once."""
        for gradient in (self.features, self.weight):
            if gradient is not None:
                gradient.mul_(outer)
        return self.features, self.weight


def kept_scores(scores: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """scores [n, V] / temperature, minus infinity where sampling never goes: outside the top_k likeliest (0: all), then
    outside those that hold the mass top_p of them (1: all). Of equals the lowest ids stay, and one token always."""
    heated = scores / temperature
    if top_k and top_k < scores.shape[1]:
        least = scores.topk(top_k, dim=1).values[:, -1:]
        above, ties = scores > least, scores == least
        kept = above | ties & (ties.cumsum(dim=1) <= top_k - above.sum(dim=1, keepdim=True))
        heated = heated.masked_fill(~kept, -torch.inf)
    if top_p < 1.0:
        order = scores.sort(dim=1, descending=True, stable=True).indices
        probability = heated.gather(1, order).softmax(dim=1)
        beyond = probability.cumsum(dim=1) - probability >= top_p
        beyond[:, 0] = False
        heated = heated.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    return heated


def draw_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """logits [n, V], uniform [n] in [0, 1) -> [n] int64: the first token at which the sum of probabilities exceeds
    uniform, by inversion; never one of probability 0, also of a uniform that was rounded up to 1. Sums are
    float64. Source: docs/papers.md, multi-turn forward."""
    sums = logits.double().softmax(dim=1).cumsum(dim=1)
    total = sums[:, -1:]
    bound = torch.minimum(uniform.to(sums)[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, bound, right=True)[:, 0]


def sample_tokens(features: Tensor, weight: Tensor, uniform: Tensor, options: HeadOptions) -> Tensor:
    """features [n, D], weight [V, D], uniform [n] float64 in [0, 1) -> [n] int64 from softmax(features @ weight.T),
    options.exclude never. No gradient. One uniform per position, so a row's draws depend on its own stream only."""
    features, weight = features.detach(), weight.detach().to(features.dtype)
    drawn = torch.empty(len(uniform), dtype=torch.long, device=features.device)
    for rows in row_slices(len(uniform), weight.shape[0], options.chunk, copies=2):
        drawn[rows] = draw_tokens(float_logits(features[rows], weight, options.exclude), uniform[rows])
    return drawn
