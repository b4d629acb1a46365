# Independent oracles of the decoder: one without cache, batch or engine, and denoisers that follow a script.
# Entry points: loaded, reference_decode, block_causal_logits, Scripted, scripted.
# Nothing here uses the package's masks, layout, statistics or policies.
"""Oracles of the decoding tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hildanext.models.adapter import HFDenoiser

MASK = 66


def loaded(model: Any, tokenizer: Any = None, mask_id: int = MASK, **meta: Any) -> Any:
    """What an engine is given, around a Hugging Face model."""
    return SimpleNamespace(
        denoiser=HFDenoiser(model, mask_id).eval(), tokenizer=tokenizer, meta=SimpleNamespace(**meta)
    )


def block_causal_logits(model: Any, tokens: list[int], block: int) -> tuple[Tensor, Any]:
    """Logits [L, V] and the cache of one forward over the whole sequence; the mask is written entry by entry."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([tokens]), attention_mask=_mask(len(tokens), block), use_cache=True)
    return out.logits[0], out.past_key_values


@cache
def _mask(size: int, block: int) -> Tensor:
    mask = torch.full((1, 1, size, size), torch.finfo(torch.float32).min)
    for query in range(size):
        for key in range(size):
            if key // block <= query // block:
                mask[0, 0, query, key] = 0.0
    return mask


def reference_decode(
    model: Any,
    prompt: list[int],
    new: int,
    block: int,
    tau_mask: float,
    tau_edit: float | None,
    mask_id: int = MASK,
    post: int = 16,
) -> list[int]:
    """Greedy joint-threshold decoding, written from the paper's sets; at most `post` edit rounds."""
    x = prompt + [mask_id] * (math.ceil((len(prompt) + new) / block) * block - len(prompt))
    for start in range(len(prompt) // block * block, len(x), block):
        rounds = 0
        while True:
            hidden = [i for i in range(start, start + block) if x[i] == mask_id]
            rounds += not hidden
            if not hidden and (tau_edit is None or rounds > post):
                break
            logits = block_causal_logits(model, x[: start + block], block)[0]
            logits[:, mask_id] = -math.inf
            best, p = logits.argmax(-1).tolist(), logits.softmax(-1).max(-1).values.tolist()
            fill = [i for i in hidden if p[i] > tau_mask] or sorted(hidden, key=lambda i: (-p[i], i))[:1]
            seen = [i for i in range(max(start, len(prompt)), start + block) if i not in hidden]
            edit = [i for i in seen if tau_edit is not None and p[i] > tau_edit and best[i] != x[i]]
            for i in fill + edit:
                x[i] = best[i]
            if not hidden and not edit:
                break
    return x[len(prompt) : len(prompt) + new]


Rule = Callable[[list[int], list[int], int], dict[int, float]]


class Scripted:
    """A denoiser whose distributions a rule gives: rule(tokens, positions, index) -> {token: probability}."""

    def __init__(self, rule: Rule, vocabulary: int = 20, mask_id: int = 19) -> None:
        self.rule, self.vocabulary, self.mask_id = rule, vocabulary, mask_id
        self.calls: list[list[list[int]]] = []

    def __call__(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any = None, select: Tensor | None = None
    ) -> Tensor:
        """Logits of the selected positions."""
        assert select is not None
        self.calls.append(tokens.tolist())
        rows = []
        for row in range(len(tokens)):
            for index in select[row].nonzero().flatten().tolist():
                rows.append(self._logits(self.rule(tokens[row].tolist(), positions[row].tolist(), index)))
        return torch.stack(rows) if rows else torch.zeros(0, self.vocabulary)

    def _logits(self, wanted: dict[int, float]) -> Tensor:
        rest = (1.0 - sum(wanted.values())) / (self.vocabulary - len(wanted))
        probability = torch.full((self.vocabulary,), max(rest, 1e-9))
        for token, value in wanted.items():
            probability[token] = value
        return probability.log()


def scripted(rule: Rule, **meta: Any) -> Any:
    """What an engine is given, around a rule."""
    return SimpleNamespace(denoiser=Scripted(rule), tokenizer=None, meta=SimpleNamespace(**meta))
