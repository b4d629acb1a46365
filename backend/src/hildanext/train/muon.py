# Muon for the hidden matrices, AdamW for everything else, as one optimiser.
# Entry points: MuonWithAdamW.
# Both parts are torch's own (Muon: torch >= 2.9); for small models trained from scratch.
"""Muon beside AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """`matrices`: groups for Muon (2-D parameters); `others`: groups for AdamW. Each group carries its own lr and
    weight_decay. Source: Jordan 2024 (Muon); both parts as torch.optim has them."""

    def __init__(
        self,
        matrices: Sequence[dict[str, Any]],
        others: Sequence[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__([dict(group) for group in (*matrices, *others)], {})
        self.muon = torch.optim.Muon([dict(group) for group in matrices])
        self.adamw = torch.optim.AdamW([dict(group) for group in others], betas=betas, eps=eps, fused=True)
        self._link()

    def _link(self) -> None:
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of both parts."""
        if closure is not None:
            raise ValueError("muon: closures are not supported")
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states, by name."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Both states, as state_dict gave them. ValueError or KeyError where they do not fit."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._link()
