# Answers by the model in training: its own engine on its own weights, and which prompts are answered when.
# Entry points: Answering, Numbered (base of what a rollout leaves), drawn, updates_of, require_same_rollout, digest.
# Nothing is copied; which prompts and which draws follow from (seed, rollout) alone.
"""Rollouts of the model in training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hildanext.config import Config
from hildanext.data.template import end_of_turn
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request, Result
from hildanext.errors import ConfigError, HildaError
from hildanext.train.loop import evaluating
from hildanext.train.training import Training


class _Ending:
    """A denoiser whose texts end at further ids too."""

    def __init__(self, denoiser: Any, ends: frozenset[int]) -> None:
        self.denoiser, self.end_ids = denoiser, ends

    def __call__(self, *args: Any, **keywords: Any) -> Tensor:
        logits: Tensor = self.denoiser(*args, **keywords)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["denoiser"], name)


@dataclass(frozen=True)
class _Parts:
    denoiser: Any
    tokenizer: Any
    meta: Any


class Answering:
    """The decoder on the model in training. model: the module that is trained; end: id that ends a turn, which ends
    answers too."""

    def __init__(self, training: Training, model: Any) -> None:
        loaded = training.loaded
        self.model, self.decode = model, training.config.decode
        self.end = end_of_turn(loaded.tokenizer).id
        ends = frozenset(loaded.denoiser.end_ids | {self.end})
        self.parts = _Parts(_Ending(loaded.denoiser, ends), loaded.tokenizer, loaded.meta)

    def answers(self, asked: Sequence[Request]) -> list[Result]:
        """The results, in order, in evaluation mode."""
        with evaluating(self.model), torch.no_grad():
            return Driver(BlockEngine(self.parts, self.decode)).run(asked)


class Numbered:
    """Rows of a rollout that know where they are from. facts: plain values for the metrics."""

    facts: Mapping[str, Any]

    @property
    def number(self) -> int:
        """Which rollout of the run it is, from 0."""
        return int(self.facts["rollout"])

    @property
    def block(self) -> int:
        """The block size it was decoded with, tokens."""
        return int(self.facts["block"])


def updates_of(answers: int, config: Config, name: str) -> int:
    """Steps that use up so many answers. ConfigError where they are not whole ones; name: of the setting."""
    step = config.train.batch * config.train.accumulate
    if answers % step:
        raise ConfigError(
            f"{name}: {answers} answers are no multiple of train.batch x train.accumulate = {step}; a rollout is used"
            " up by whole steps"
        )
    return answers // step


def require_same_rollout(own: Mapping[str, Any], saved: Mapping[str, Any], needed: str) -> None:
    """HildaError where prompts or the steps of a rollout are others than a checkpoint's; needed: settings in words."""
    changed = [name for name in ("updates", "prompts") if saved[name] != own[name]]
    if changed:
        raise HildaError(
            f"train.resume: {' and '.join(changed)} of a rollout differ from the checkpoint's; resume with {needed}, or"
            " start anew with model.path set to the checkpoint"
        )


def drawn(total: int, wanted: range, seed: int) -> list[int]:
    """Which of `total` prompts have these places when every epoch takes each once, in an order of its own."""
    orders: dict[int, Any] = {}
    for epoch in {place // total for place in wanted}:
        orders[epoch] = np.random.default_rng([seed, epoch]).permutation(total)
    return [int(orders[place // total][place % total]) for place in wanted]


def digest(prompts: Sequence[tuple[int, ...]]) -> str:
    """What tells one list of prompts from another."""
    return hashlib.sha256(repr(list(prompts)).encode()).hexdigest()
