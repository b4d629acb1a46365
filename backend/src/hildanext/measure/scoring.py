# Likelihood of given continuations under a model read left to right, and the rows that score them.
# Entry points: pair_batch, causal_nats.
# The prompt is context: it is visible and not scored. Letters: B rows, L positions.
"""Scoring text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hildanext.core.batches import document_batch
from hildanext.core.likelihood import autoregressive_nll
from hildanext.core.types import Batch
from hildanext.data.tokenizers import begun


def pair_batch(tokenizer: Any, prompt: str | Sequence[int], text: str, window: int) -> Batch:
    """One row [1, L] of prompt and text, encoded together as they stand (a prompt of ids stays); learn marks the
    text. A row longer than `window` (0: no bound) loses tokens from its left; a prompt of nothing becomes the
    end-of-text token."""
    lead = begun(_encoded(tokenizer, prompt), tokenizer) if isinstance(prompt, str) else list(prompt)
    whole = begun(_encoded(tokenizer, prompt + text), tokenizer) if isinstance(prompt, str) else []
    if whole[: len(lead)] != lead or not isinstance(prompt, str):
        whole = lead + _encoded(tokenizer, text)
    if not lead:
        lead, whole = [int(tokenizer.eos_token_id)], [int(tokenizer.eos_token_id), *whole]
    ids = whole[-window:] if window else whole
    return document_batch([(ids, max(0, len(ids) - len(whole) + len(lead)))], 0)


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def causal_nats(loaded: Any, prompt: str, text: str) -> float:
    """-log p(text | prompt) in nats under the model read left to right. A text beyond the window is scored in pieces,
    each behind as much of what precedes it as half a window or more holds."""
    whole, window = pair_batch(loaded.tokenizer, prompt, text, 0), loaded.denoiser.window
    ids, first = whole.tokens[0].tolist(), int((~whole.learn[0]).sum())
    step = window // 2 if window and len(ids) > window else len(ids)
    total = 0.0
    for start in range(first, len(ids), step):
        row = ids[max(0, start + step - window) if window else 0 : start + step]
        scored = min(step, len(ids) - start)
        batch = document_batch([(row, len(row) - scored)], 0).to(loaded.denoiser.device)
        total += autoregressive_nll(loaded.denoiser, batch).nats
    return total
