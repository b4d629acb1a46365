# How a Batch is made: from rows of arrays, from documents of token ids, lengthened, repeated. The only place that does.
# Entry points: stacked, document_batch, padded, repeated.
# Padding is a document of its own with learn False, so nothing sees it and nothing is learned there.
"""Builders of batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from hildanext.core.types import Batch


def stacked(rows: Iterable[tuple[Any, Any, Any]], ids: tuple[int, ...] = ()) -> Batch:
    """Rows (tokens, learn, docs) of one length L, arrays or tensors, as a Batch [B, L]; ids: their row numbers."""
    tokens, learn, docs = (torch.stack([torch.as_tensor(part) for part in field]) for field in zip(*rows, strict=True))
    return Batch(tokens.long(), learn.bool(), docs.long(), ids)


def document_batch(
    documents: Sequence[tuple[Sequence[int], int]], pad_id: int, multiple: int = 1, ids: tuple[int, ...] = ()
) -> Batch:
    """One document per row, [B, L]: (token ids, index of the first learned one); L is the longest document's length
    rounded up to `multiple`; ids: their row numbers."""
    width = max(len(ids) for ids, _ in documents)
    tokens = torch.full((len(documents), width), pad_id, dtype=torch.long)
    learn, docs = torch.zeros_like(tokens, dtype=torch.bool), torch.ones_like(tokens)
    for row, (own, first) in enumerate(documents):
        tokens[row, : len(own)] = torch.tensor(list(own), dtype=torch.long)
        learn[row, first : len(own)] = True
        docs[row, : len(own)] = 0
    return padded(Batch(tokens, learn, docs, ids), multiple, pad_id)


def padded(batch: Batch, multiple: int, pad_id: int) -> Batch:
    """The batch with rows lengthened to a multiple of `multiple` positions."""
    missing = -batch.tokens.shape[1] % multiple
    if not missing:
        return batch
    own = int(batch.docs.max()) + 1
    tokens, docs = pad(batch.tokens, (0, missing), value=pad_id), pad(batch.docs, (0, missing), value=own)
    return Batch(tokens, pad(batch.learn, (0, missing), value=False), docs, batch.ids)


def repeated(batch: Batch, times: int) -> Batch:
    """The rows `times` over, in order, ids too."""
    tokens, learn, docs = (torch.cat([part] * times) for part in (batch.tokens, batch.learn, batch.docs))
    groups = None if batch.groups is None else torch.cat([batch.groups] * times)
    return Batch(tokens, learn, docs, batch.ids * times, groups, batch.opened)
