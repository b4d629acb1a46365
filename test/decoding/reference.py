# What an engine is given in tests: a Hugging Face model, or a denoiser that follows a script.
# Entry points: loaded, Scripted, scripted, committed, MASK.
# A script gives the probabilities, so every expected number can be counted by hand.
"""Models of the decoding tests."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from stand_in import StandIn
from torch import Tensor

from hildanext.decoding.store import KeysValues, StateStore
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.meta import HildaMeta

MASK = 66


def loaded(model: Any, tokenizer: Any = None, mask_id: int = MASK, **meta: Any) -> Any:
    """What an engine is given, around a Hugging Face model."""
    return SimpleNamespace(denoiser=HFDenoiser(model, mask_id).eval(), tokenizer=tokenizer, meta=HildaMeta(**meta))


def committed(store: StateStore, slot: int, layer: int) -> tuple[Tensor, ...]:
    """Views [H, n, D] of a slot's committed keys and values in one layer."""
    state = store.layers[layer]
    assert isinstance(state, KeysValues)
    return tuple(held[slot, :, : store.lengths[slot]] for held in state.held)


Rule = Callable[[list[int], list[int], int], dict[int, float]]


class Scripted(StandIn):
    """A denoiser whose distributions a rule gives: rule(tokens, positions, index) -> {token: probability}."""

    def __init__(self, rule: Rule, vocabulary: int = 20, mask_id: int = 19) -> None:
        super().__init__(vocab_size=vocabulary, mask_id=mask_id)
        self.rule = rule
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
        return torch.stack(rows) if rows else torch.zeros(0, self.vocab_size)

    def _logits(self, wanted: dict[int, float]) -> Tensor:
        rest = (1.0 - sum(wanted.values())) / (self.vocab_size - len(wanted))
        probability = torch.full((self.vocab_size,), max(rest, 1e-9))
        for token, value in wanted.items():
            probability[token] = value
        return probability.log()


def scripted(rule: Rule, **meta: Any) -> Any:
    """What an engine is given, around a rule."""
    return SimpleNamespace(denoiser=Scripted(rule), tokenizer=None, meta=HildaMeta(**meta))
