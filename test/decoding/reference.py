# What an engine is given in tests: a Hugging Face model, or a denoiser that follows a script.
# Entry points: loaded, Scripted, scripted, MASK.
# A script gives the probabilities, so every expected number can be counted by hand.
"""Models of the decoding tests."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hildanext.models.denoiser import HFDenoiser

MASK = 66


def loaded(model: Any, tokenizer: Any = None, mask_id: int = MASK, **meta: Any) -> Any:
    """What an engine is given, around a Hugging Face model."""
    return SimpleNamespace(
        denoiser=HFDenoiser(model, mask_id).eval(), tokenizer=tokenizer, meta=SimpleNamespace(**meta)
    )


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
