# What rl and dpo need beside a training run: rollouts that decode on the weights in training, and a frozen reference.
# Entry points: PolicyFootprint, policy_footprint.
# A rollout and an update take turns, so of a rollout only what is over the update's own need is added. The update has
# the graph of one view of train.batch rows at a time, whatever the draws.
"""Memory of reinforcement learning and of preference training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hildanext.config import Config
from hildanext.config.model import AdapterConfig
from hildanext.config.train import ObjectiveSection
from hildanext.core.policy_objective import PolicyObjective
from hildanext.models.kind import Footprint
from hildanext.models.load import NEW, choose_device, choose_dtype, kind_at
from hildanext.registry import build

VIEW = {"type": "mask_and_edit", "noise": {"replace": 0.0}, "keep_weight": 0.0}
UPDATE = ("activations", "logits", "gradients")
ROLLOUT = ("activations", "logits", "kv")


@dataclass(frozen=True)
class PolicyFootprint:
    """The footprint of a model that is reinforced, or (objective.pairs) trained on pairs. reference: its folder, empty
    where the run's own beginning serves. See models.kind.Footprint."""

    base: Footprint
    objective: PolicyObjective
    reference: str = ""

    def weights(self, dtype: torch.dtype) -> float:
        """Bytes of the weights alone."""
        return self.base.weights(dtype)

    def training(self, config: Config, window: int, ranks: int) -> Mapping[str, float]:
        """Bytes by part, with `rollout`: what decoding takes beyond the update; and `companions`: the reference."""
        parts = dict(self.base.training(self._one_view(config), window, ranks))
        if self.objective.compares and (self.reference or config.model.adapter.kind == "none"):
            parts["companions"] = self._reference(config)
        if not self.objective.pairs:
            beside = self.base.decoding(config, window)
            over = sum(beside[name] for name in ROLLOUT) - sum(parts[name] for name in UPDATE)
            parts["rollout"] = max(0.0, over)
        return parts

    def unsure(self, config: Config, window: int) -> str:
        """As of the network."""
        return self.base.unsure(self._one_view(config), window)

    def decoding(self, config: Config, window: int) -> Mapping[str, float]:
        """As of the network."""
        return self.base.decoding(config, window)

    def _one_view(self, config: Config) -> Config:
        rows = config.train.batch * (2 if self.objective.pairs else 1)
        train = config.train.model_copy(update={"batch": rows})
        return config.model_copy(update={"objective": ObjectiveSection.model_validate(VIEW), "train": train})

    def _reference(self, config: Config) -> float:
        plain = {"adapter": AdapterConfig()} | ({"path": self.reference} if self.reference else {})
        model = config.model.model_copy(update=plain)
        if model.path == NEW:
            return 0.0
        dtype, _ = choose_dtype(model.dtype, choose_device(model.device))
        return kind_at(model.path).footprint(model).weights(dtype)


def policy_footprint(config: Config, command: str) -> Footprint | None:
    """Of a run of `rl` or `dpo`; None for every other command, whose own is meant."""
    if command not in ("rl", "dpo"):
        return None
    own = config.rl if command == "rl" else config.dpo
    objective: PolicyObjective = build("policy_objectives", own.objective, f"{command}.objective")
    return PolicyFootprint(kind_at(config.model.path).footprint(config.model), objective, own.reference)
