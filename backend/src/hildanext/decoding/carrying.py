# What the positions of an opened block carry to its next forward, kept from one look to the next.
# Entry points: Held (a block's), observed (what a carry reads of a forward), carried_on, mixture_of.
# It begins empty with every block, so the first forward is the plain one; final blocks have none.
# Letters: Q positions of a block, n of them looked at, k ids of each.
"""Carry-over in the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from hildanext.core.carry import Carried, Carry, Likely, likely
from hildanext.core.head import exclude_token
from hildanext.core.mixture import Mixture
from hildanext.core.types import Canvas, Stats


@dataclass(frozen=True)
class Held:
    """on [Q] bool: positions whose next input is a mixture; what: of all Q; filled: whether some of them hold tokens,
    so that the forward's keys are not those of the text."""

    on: Tensor
    what: Carried
    filled: bool


@dataclass(frozen=True)
class Observed:
    """Of the positions looked at, [Q] bool: the prediction [n], and the probability [n] of what stood there."""

    looked: Tensor
    found: Likely
    standing: Tensor


def observed(carry: Carry, canvas: Canvas, looked: Tensor, scores: Tensor) -> Observed:
    """From the logits [n, V] of a block's forward, which are not changed."""
    found = likely(scores, canvas.mask_id, carry.top_k, carry.temperature)
    standing = torch.zeros(scores.shape[0])
    if carry.filled and scores.shape[0]:
        tokens = canvas.tokens[looked].to(scores.device)
        own = exclude_token(scores.float().clone(), canvas.mask_id).log_softmax(dim=1)
        standing = own.gather(1, tokens[:, None])[:, 0].exp().cpu()
    return Observed(looked, Likely(found.ids.cpu(), found.probability.cpu(), found.spread.cpu()), standing)


def carried_on(carry: Carry, before: Held | None, seen: Canvas, now: Observed, after: tuple[Tensor, Stats]) -> Held:
    """What a block carries after an update. seen: the block as the forward saw it; now: what was observed; after: its
    tokens [Q] after the update, and the statistics [Q]."""
    tokens, stats = after
    looked, hidden = now.looked, tokens == seen.mask_id
    masked = hidden & looked
    place = looked.cumsum(0) - 1
    parts = [(masked, carry.carried(_rows(now.found, place[masked]), seen.step))]
    filled = torch.zeros_like(hidden)
    if carry.filled:
        fresh = seen.editable & ~hidden & looked
        sure = torch.where(tokens == stats.best, stats.probability, _spread(now.standing, looked))
        parts.append((fresh, carry.held(tokens[fresh], sure[fresh])))
        kept = filled if before is None else seen.editable & ~hidden & ~looked & before.on
        if before is not None and bool(kept.any()):
            parts.append((kept, _of(before.what, kept)))
        filled = fresh | kept
    return Held(masked | filled, _whole(parts, len(tokens)), bool(filled.any()))


def _rows(found: Likely, rows: Tensor) -> Likely:
    return Likely(found.ids[rows], found.probability[rows], found.spread[rows])


def _of(what: Carried, rows: Tensor) -> Carried:
    return Carried(what.ids[rows], what.weights[rows], what.mask_weight[rows])


def _spread(values: Tensor, looked: Tensor) -> Tensor:
    return torch.zeros(looked.shape[0]).masked_scatter(looked, values.float())


def _whole(parts: Sequence[tuple[Tensor, Carried]], size: int) -> Carried:
    widest = max(part.ids.shape[1] for _, part in parts)
    ids, weights = torch.zeros(size, widest, dtype=torch.long), torch.zeros(size, widest)
    mask_weight = torch.ones(size)
    for where, part in parts:
        more = (0, widest - part.ids.shape[1])
        ids[where], weights[where] = pad(part.ids, more), pad(part.weights, more)
        mask_weight[where] = part.mask_weight
    return Carried(ids, weights, mask_weight)


def mixture_of(carry: Carry, held: Held, mask_id: int, start: int) -> Mixture:
    """The inputs of a block that begins at column `start` of its row."""
    columns = held.on.nonzero().flatten()
    what = _of(held.what, held.on)
    return what.mixture(mask_id, torch.zeros_like(columns), columns + start, carry.norms)
