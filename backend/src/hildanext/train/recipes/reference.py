# The policy that training is held near: adapters off, or a frozen second model; and what scores a batch beforehand.
# Entry points: Reference, ahead (what of a batch is known before it is learned from).
# Theta, old and reference score the same views, under the same autocast, without dropout.
"""Reference and old policy."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hildanext.config import Config
from hildanext.core.noise import Corruption
from hildanext.core.policy_objective import Known, PolicyObjective
from hildanext.core.policy_views import Played
from hildanext.errors import ConfigError
from hildanext.models.about import about
from hildanext.models.load import NEW
from hildanext.train.loop import evaluating
from hildanext.train.training import Training


class Reference:
    """Of a run whose objective compares with one, else nothing. ConfigError where a new model trains."""

    def __init__(self, training: Training, objective: PolicyObjective, path: str) -> None:
        config = training.config
        known = about(training.loaded, config.model)
        self.wanted, self._off = objective.compares, known.parent if not path else None
        self._other: Any = None
        if not self.wanted or self._off is not None:
            return
        if not path and config.model.path == NEW:
            raise ConfigError("model.path new: there is nothing to hold it near; name a reference, or set kl_weight=0")
        named = path or config.model.path
        training.console.say(f"reference {named}: a frozen copy beside the model")
        self._other = known.load(named)

    def scores(
        self, model: Any, objective: PolicyObjective, played: Played, block: int,
        given: list[tuple[Corruption, Tensor | None]],
    ) -> tuple[Tensor, ...] | None:  # fmt: skip
        """Its log-probabilities at the scored positions of each view, with its support; None where none is wanted."""
        if not self.wanted:
            return None
        with self._off() if self._off is not None else nullcontext():
            source = model if self._other is None else self._other
            return tuple(objective.score(source, played, block, *one) for one in given)


def ahead(
    objective: PolicyObjective, reference: Reference, model: Any, played: Played, where: tuple[int, torch.Generator]
) -> Known:
    """Views and scores of a batch by the model as it is, and by the reference; where: block size, generator of the
    masks."""
    block, rng = where
    with evaluating(model), torch.no_grad():
        views = objective.views(model, played, block, rng)
        cuts = [objective.support(model, played, block, view) for view in views]
        support = tuple(one for one in cuts if one is not None) or None
        given = list(zip(views, cuts, strict=True))
        own = tuple(objective.score(model, played, block, *one) for one in given) if objective.reads_old else ()
        return Known(views, own, reference.scores(model, objective, played, block, given), support)


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """What the loop runs its forwards under."""
    wanted = config.train.autocast
    return torch.autocast(device.type, getattr(torch, wanted)) if wanted != "none" else nullcontext()


def require_single(config: Config, ranks: int) -> None:
    """ConfigError for several ranks and for dropout."""
    if ranks > 1:
        raise ConfigError(f"train.parallel: {ranks} ranks; this recipe runs in one process; use train.parallel=none")
    if config.model.adapter.dropout:
        raise ConfigError(
            f"model.adapter.dropout {config.model.adapter.dropout:g}: a ratio would differ from 1 by chance; set it"
            " to 0"
        )
