# On-policy distillation: the student decodes answers itself; the states of its own decoding are what it is trained on.
# Entry points: on_policy_command, OnPolicy (the Work), prompts_of.
# A rollout decodes `rollout.prompts` prompts, `updates` steps go over them once. Its block size and answer length grow
# with its number. Which prompts, draws and rounds follow from (seed, rollout), so only the rows of the rollout at work
# are in a checkpoint. The objective scores given views, at the text the student finished; `distill` is the one meant.
"""On-policy distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hildanext import registry
from hildanext.config import Config
from hildanext.config.train import RolloutConfig
from hildanext.core.noise import Corruption, maskable
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch, LossReport, Objective
from hildanext.data.shards import ShardSet
from hildanext.decoding.request import Request
from hildanext.decoding.trajectory import Trajectory
from hildanext.errors import ConfigError, DataError
from hildanext.models.about import about
from hildanext.progress import Console
from hildanext.train.loop import Notes
from hildanext.train.recipes.conversion import DROPOUT, step_seed, train_command
from hildanext.train.recipes.rollout import Answering, Numbered, digest, drawn, require_same_rollout, updates_of
from hildanext.train.training import Training

Prompt = tuple[int, ...]


def on_policy_command(config: Config, console: Console, path: Path | None) -> dict[str, Any]:
    """Roll out and train in a run directory, as train_command does; returns its report."""
    return train_command(config, console, "on-policy", path, OnPolicy)


def prompts_of(shards: ShardSet, most: int) -> list[Prompt]:
    """What stands before the first learned token of every document, where that is 1 to `most` tokens: the prompts of
    chats. DataError where there is none."""
    found, longer = list[Prompt](), 0
    for index in range(len(shards)):
        row = shards[index]
        for doc in np.unique(row.docs[row.learn]):
            tokens, learn = row.tokens[row.docs == doc], row.learn[row.docs == doc]
            first = int(learn.argmax())
            found += [tuple(tokens[:first].tolist())] if 0 < first <= most else []
            longer += first > most
    if not found:
        raise DataError(
            f"{shards.folder}: no prompt of 1 to {most} tokens before a reply ({longer} are longer); give shards of"
            " chats (train.split=sft_train), or a longer tokenize.window"
        )
    return found


@dataclass(frozen=True)
class Rollout(Numbered):
    """Decoded answers as rows. tokens, state [N, W] int64: finished text, and the noised half; spans [N, 3] int64: of
    the answer start and stop, length of the row; ids: of the prompts; facts: plain values for the metrics, among them
    its number `rollout` and its `block`."""

    tokens: Tensor
    state: Tensor
    spans: Tensor
    ids: tuple[int, ...]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, found: list[Trajectory], ids: list[int], facts: Mapping[str, Any], rng: torch.Generator) -> Rollout:
        """Each block of each answer in one of its own states, drawn among those with something left to learn."""
        block = int(facts["block"])
        width = -(-max(len(one.tokens) for one in found) // block) * block
        tokens, state = torch.zeros(2, len(found), width, dtype=torch.long)
        for row, one in enumerate(found):
            tokens[row, : len(one.tokens)] = one.tokens
            state[row, : len(one.tokens)] = one.state({start: _round(one, start, rng) for start in one.looks})
        spans = torch.tensor([[one.first, one.stop, len(one.tokens)] for one in found])
        return cls(tokens, state, spans, tuple(ids), dict(facts))

    def rows(self, chosen: slice, pad_id: int) -> tuple[Batch, Tensor]:
        """(batch, state) of some answers, cut to the longest, in whole blocks."""
        first, stop, length = (column[:, None] for column in self.spans[chosen].unbind(1))
        width = -(-int(length.max()) // self.block) * self.block
        index = torch.arange(width)[None]
        inside = index < length
        tokens = torch.where(inside, self.tokens[chosen, :width], pad_id)
        learn = (index >= first) & (index < stop)
        return Batch(tokens, learn, (~inside).long(), self.ids[chosen]), self.state[chosen, :width]


class OnPolicy:
    """A step is `train.accumulate` batches of the rollout at work. model: the Denoiser the objective sees, and the one
    that decodes. Source: OPDLM arXiv:2606.06712; the end of turn is learned here, and blocks may grow."""

    noise = None

    def __init__(self, training: Training, model: Any) -> None:
        config = training.config
        self.training, self.model, self.settings = training, model, config.rollout
        self.updates = _updates(config, training.ranks.size)
        self.objective = _objective(config, training)
        window, largest = training.shards.window, max(training.ladder.blocks)
        self.prompts = prompts_of(training.shards, window - largest)
        self.answering = Answering(training, model)
        self._pad = int(training.shards.manifest["pad_id"])
        self._rollout: Rollout | None = None
        self._notes = Notes(0)

    def micro_batches(self, step: int) -> Iterator[Callable[[], LossReport]]:
        """The next batches of the rollout, which is decoded when the one before it is used up."""
        number, place = divmod(step, self.updates)
        if self._rollout is None or self._rollout.number != number:
            self._rollout = self.decoded(number)
        train, rollout = self.training.config.train, self._rollout
        batches = []
        for index in range(train.accumulate):
            start = (place * train.accumulate + index) * train.batch
            batches.append(rollout.rows(slice(start, start + train.batch), self._pad))
        tokens, rows = sum(batch.tokens.numel() for batch, _ in batches), [i for batch, _ in batches for i in batch.ids]
        self._notes = Notes(tokens, rows, rollout.facts)
        for index, (batch, state) in enumerate(batches):
            yield partial(self._loss, step, index, batch, state)

    def _loss(self, step: int, index: int, batch: Batch, state: Tensor) -> LossReport:
        device, rollout = self.training.loaded.device, self._rollout
        assert rollout is not None
        torch.manual_seed(step_seed(self.training.config.seed, step, micro=DROPOUT + index))
        batch, state = batch.to(device), state.to(device)
        view = view_of(batch, state, self.model.mask_id, rollout.block)
        return self.objective.loss_of(self.model, batch, (view,), rollout.block)

    def decoded(self, number: int) -> Rollout:
        """Rollout `number` by the model as it is."""
        config, stage = self.training.config, self.training.ladder.stage(number * self.updates)
        longest = answer_length(self.settings, number, self.training.shards.window)
        wanted = range(number * self.settings.prompts, (number + 1) * self.settings.prompts)
        chosen = drawn(len(self.prompts), wanted, config.seed)
        seed = step_seed(config.seed, number * self.updates)
        asked = [
            Request(
                prompt_ids=self.prompts[index], seed=seed, sample=place, block=stage.block, trace=True,
                max_new_tokens=min(longest, self.training.shards.window - len(self.prompts[index])),
            )
            for place, index in enumerate(chosen)
        ]  # fmt: skip
        results = self.answering.answers(asked)
        found = [
            Trajectory.of(self.prompts[index], result, self.model.mask_id)
            for index, result in zip(chosen, results, strict=True)
        ]
        forwards, tokens = sum(r.metrics.forwards for r in results), sum(r.metrics.tokens for r in results)
        facts = {
            "phase": stage.phase, "block": stage.block, "rollout": number, "longest": longest,
            "answer": tokens / len(found), "stopped": sum(one.stopped for one in found) / len(found),
            "tokens_per_forward": tokens / forwards,
        }  # fmt: skip
        return Rollout.of(found, chosen, facts, torch.Generator().manual_seed(seed))

    def notes(self) -> Notes:
        """Tokens and prompts of the step, and what is known of its rollout."""
        return self._notes

    def state_dict(self) -> dict[str, Any]:
        """The rollout at work, and what its number and its prompts depend on."""
        own = {"updates": self.updates, "prompts": digest(self.prompts)}
        return {"rollout": own | ({} if self._rollout is None else {"rows": vars(self._rollout)})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the middle of a rollout. HildaError where prompts or the steps of a rollout are others."""
        own, saved = self.state_dict()["rollout"], state["rollout"]
        require_same_rollout(own, saved, "its shards, window, train.batch, train.accumulate and rollout.prompts")
        self._rollout = Rollout(**saved["rows"]) if "rows" in saved else None


def view_of(batch: Batch, state: Tensor, mask_id: int, block: int) -> Corruption:
    """A state of the decoder as a view: its [MASK]s are M2T, a token it still had otherwise T2T, the rest KEEP, each
    where the answer is. rate: the share of masks in the block; every weight is 1. Source: docs/papers.md, OPDLM."""
    can = maskable(batch, mask_id)
    m2t = can & (state == mask_id)
    t2t = can & ~m2t & (state != batch.tokens)
    shape = (len(state), -1, block)
    share = m2t.view(shape).double().mean(-1, keepdim=True).expand(-1, -1, block).reshape(state.shape)
    return Corruption(state, m2t, t2t, can, share, torch.ones_like(share))


def answer_length(settings: RolloutConfig, number: int, window: int) -> int:
    """Most new tokens of rollout `number`: from `first` to `last` (0: the window) over `ramp` rollouts, linearly.
    Source: OPDLM arXiv:2606.06712, which goes from 100 to 4,000 over 100 rollouts."""
    last = settings.last or window
    share = min(1.0, number / settings.ramp) if settings.ramp else 1.0
    return max(1, min(window, round(settings.first + (last - settings.first) * share)))


def _round(one: Trajectory, start: int, rng: torch.Generator) -> int:
    rows = one.looks[start]
    learned = torch.arange(start, start + rows.shape[1]) < one.stop
    open_ = ((rows != one.tokens[start : start + rows.shape[1]]) & learned).any(dim=1).nonzero()[:, 0]
    # one draw for every block, also where there is nothing to choose
    drawn = float(torch.rand((), generator=rng, dtype=torch.float64))
    return int(open_[int(drawn * len(open_))]) if len(open_) else 0


def _updates(config: Config, ranks: int) -> int:
    if ranks > 1:
        raise ConfigError(f"train.parallel: {ranks} ranks; on-policy decodes in one process; use train.parallel=none")
    return updates_of(config.rollout.prompts, config, "rollout.prompts")


def _objective(config: Config, training: Training) -> MaskAndEdit:
    made: Objective = registry.build("objectives", config.objective, "objective")
    if not isinstance(made, MaskAndEdit):
        raise ConfigError(
            f"objective {config.objective.type}: on-policy scores the decoder's own states, which only distill and the"
            " other objectives made of mask_and_edit can"
        )
    if made.anneal:
        raise ConfigError(
            "objective.anneal: on-policy decodes with the whole block from the first step, and so it must train; set 0"
        )
    return made.prepare(about(training.loaded, config.model))
