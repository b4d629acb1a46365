# Likelihood of given continuations: exact under an AR model, bounded by the block ELBO under a diffusion model.
# Entry points: pair_batch, causal_nats, bound_nats, document_batches, padded.
# The prompt is context: it is visible and not scored. Letters: B rows, L positions.
"""Scoring text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hildanext.core.likelihood import Estimate, autoregressive_nll, block_elbo
from hildanext.core.types import Batch


def pair_batch(tokenizer: Any, prompt: str, text: str, window: int) -> Batch:
    """One row [1, L] of prompt and text, encoded together as they stand; learn marks the text. A row longer than
    `window` (0: no bound) loses tokens from its left; an empty prompt becomes the end-of-text token."""
    lead = list(tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else []
    whole = list(tokenizer(prompt + text, add_special_tokens=False)["input_ids"])
    if whole[: len(lead)] != lead:
        whole = lead + list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not lead:
        lead, whole = [int(tokenizer.eos_token_id)], [int(tokenizer.eos_token_id), *whole]
    scored = len(whole) - len(lead)
    ids = whole[-window:] if window else whole
    tokens = torch.tensor([ids])
    learn = torch.arange(len(ids)) >= len(ids) - scored
    return Batch(tokens, learn.expand_as(tokens), torch.zeros_like(tokens))


def _window(loaded: Any) -> int:
    return int(loaded.denoiser.window)


def causal_nats(loaded: Any, prompt: str, text: str) -> float:
    """-log p(text | prompt) in nats under the model read left to right."""
    batch = pair_batch(loaded.tokenizer, prompt, text, _window(loaded)).to(loaded.denoiser.device)
    return autoregressive_nll(loaded.denoiser, batch).nats


def bound_nats(loaded: Any, prompt: str, text: str, samples: int, seed: int) -> Estimate:
    """Upper bound of -log p(text | prompt) at the model's own block size. samples = 0: exact, blocks of at most 8."""
    batch = pair_batch(loaded.tokenizer, prompt, text, _window(loaded)).to(loaded.denoiser.device)
    block = loaded.meta.block or 1
    rng = torch.Generator().manual_seed(seed)
    return block_elbo(loaded.denoiser, padded(batch, block, loaded.denoiser.mask_id), block, rng, samples)


def padded(batch: Batch, multiple: int, pad_id: int) -> Batch:
    """The batch with rows lengthened to a multiple of `multiple`: padding is a document of its own, learn False."""
    missing = -batch.tokens.shape[1] % multiple
    if not missing:
        return batch
    tokens = torch.nn.functional.pad(batch.tokens, (0, missing), value=pad_id)
    learn = torch.nn.functional.pad(batch.learn, (0, missing), value=False)
    docs = torch.nn.functional.pad(batch.docs, (0, missing), value=int(batch.docs.max()) + 1)
    return Batch(tokens, learn, docs, batch.ids)


def document_batches(
    documents: Sequence[tuple[Sequence[int], int]], pad_id: int, rows: int, multiple: int = 1
) -> Iterator[Batch]:
    """One document per row: (ids, first scored position); rows of a batch are padded, with learn False, to a multiple
    of `multiple` positions."""
    for start in range(0, len(documents), rows):
        part = documents[start : start + rows]
        width = max(len(ids) for ids, _ in part)
        tokens = torch.full((len(part), width), pad_id, dtype=torch.long)
        learn = torch.zeros_like(tokens, dtype=torch.bool)
        docs = torch.ones_like(tokens)
        for row, (ids, first) in enumerate(part):
            tokens[row, : len(ids)] = torch.tensor(list(ids))
            learn[row, first : len(ids)] = True
            docs[row, : len(ids)] = 0
        yield padded(Batch(tokens, learn, docs), multiple, pad_id)
