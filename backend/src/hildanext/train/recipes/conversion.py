# Conversion, SFT and AR parents: rows of shards under an objective at the ladder's block size, from parent to child.
# Entry points: train_command, Supervised (the Work), Recipe (what may stand in its place), step_seed.
# The three differ in their configuration alone. Noise is seeded by (seed, step, row), so a resumed run repeats an
# uninterrupted one exactly, and no random state is saved.
"""Conversion, SFT and parent training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from hildanext import registry
from hildanext.config import Config
from hildanext.core.types import Batch, LossReport, Objective
from hildanext.data.loader import Loader, OtherData
from hildanext.data.replay import REPLAYED, Earlier, Replayed, earlier_rows
from hildanext.data.shards import ShardSet
from hildanext.data.storage import fetched
from hildanext.errors import DataError
from hildanext.models.about import about
from hildanext.models.inspection import conversion_report, require_parity
from hildanext.models.mask_token import EmbeddingNoise
from hildanext.progress import Console
from hildanext.train.loop import Notes, Trainer, Work
from hildanext.train.recorder import RunRecorder
from hildanext.train.resume import OVERRIDE
from hildanext.train.training import Training, open_training, trainable

DROPOUT = 1 << 20


class Recipe(Work, Protocol):
    """What train_command makes of a training and the model the objective sees: a Work, and its noise on the embedding
    of [MASK], or None."""

    @property
    def noise(self) -> EmbeddingNoise | None:
        """Entered before the first step, left after the last."""
        ...


def train_command(
    config: Config,
    console: Console,
    command: str,
    path: Path | None,
    recipe: Callable[[Training, Any], Recipe] | None = None,
) -> dict[str, Any]:
    """Inspect, train, evaluate, save in a run directory; returns the report, which is also report.json. recipe: what
    its steps are made of, Supervised where nothing is said. Interrupted and RunError pass through."""
    with open_training(config, console, command, path) as training:
        if command != "convert-wsd":
            _say_unconverted(training, command)
        _say_unfilled(training)
        inspected = _inspected(training)
        model, choice = trainable(training)
        work, recorder = (recipe or Supervised)(training, model), RunRecorder(training, model, choice)
        trainer = Trainer(
            work, model, choice.optimizer, training.ladder.steps, config.optimizer, config.train, recorder,
            training.ranks, training.console,
        )  # fmt: skip
        recorder.begin(trainer)
        with work.noise or nullcontext():
            trainer.fit()
        return recorder.finish(inspected)


def _say_unconverted(training: Training, command: str) -> None:
    if training.causal or training.resumed is not None or training.loaded.meta.block is not None:
        return
    words = (
        f"model {training.config.model.path} is a plain autoregressive model: hildanext.json records no conversion to"
        f" block diffusion, and {command} makes none; run convert-wsd on it first, or expect to learn both at once"
    )
    training.console.warn(words)


def _say_unfilled(training: Training) -> None:
    facts, block = training.shards.manifest, training.ladder.last
    filled = facts.get("pad_to_block", 0) if facts.get("chat_template") and not training.causal else 0
    if filled and filled % block:
        training.console.warn(
            f"{training.shards.folder}: chats are filled to blocks of {filled}, this run ends at blocks of {block}:"
            " what follows a reply's end in a block is not always learned; tokenize again with"
            f" tokenize.pad_to_block={block}"
        )


def _inspected(training: Training) -> dict[str, Any]:
    if training.causal or training.resumed is not None or not training.config.train.parity:
        return {}
    facts = conversion_report(training.loaded, window=training.shards.window)
    require_parity(facts["parity"], training.config.model.path)
    if training.ranks.first:
        training.run.write_json("inspect.json", facts)
    return facts


class Supervised:
    """A step is `train.accumulate` batches of the shards under the objective, at the block size of the ladder. model:
    the Denoiser the objective sees; noise: on the embedding of [MASK] in the first steps of a conversion, or None."""

    def __init__(self, training: Training, model: Any) -> None:
        config, train, ranks = training.config, training.config.train, training.ranks
        self.training, self.model, self.ladder = training, model, training.ladder
        objective: Objective = registry.build("objectives", config.objective, "objective")
        self.objective = objective.prepare(about(training.loaded, config.model))
        self.noise = None if training.causal else _embedding_noise(training)
        plain = Loader(
            training.shards, train.batch, config.seed, ranks.rank, ranks.size, train.workers, train.shorten,
            train.accumulate,
        )  # fmt: skip
        self.loader = Replayed(plain, _earlier(training)) if train.replay else plain
        self._rows, self._notes = iter(self.loader), Notes(0)

    def micro_batches(self, step: int) -> Iterator[Callable[[], LossReport]]:
        """The next batches of this rank."""
        batches = [next(self._rows) for _ in range(self.training.config.train.accumulate)]
        stage, tokens = self.ladder.stage(step), sum(batch.tokens.numel() for batch in batches)
        rows = [row % len(self.training.shards) for batch in batches for row in batch.ids if row < REPLAYED]
        self._notes = Notes(tokens * self.training.ranks.size, rows, {"phase": stage.phase, "block": stage.block})
        for index, batch in enumerate(batches):
            losses = self._losses(step, index, batch)
            yield from [partial(next, losses)] * len(self.objective.passes)

    def _losses(self, step: int, index: int, batch: Batch) -> Iterator[LossReport]:
        seed, ranks = self.training.config.seed, self.training.ranks
        if self.noise is not None:
            self.noise.set_scale(step)
            self.noise.rng.manual_seed(step_seed(seed, step, micro=1 + index * ranks.size + ranks.rank))
        torch.manual_seed(step_seed(seed, step, micro=DROPOUT + index * ranks.size + ranks.rank))
        rng = torch.Generator().manual_seed(step_seed(seed, step))
        block, given = self.ladder.block(step), batch.to(self.training.loaded.device)
        yield from self.objective.at(step / self.ladder.steps).losses(self.model, given, block, rng)

    def notes(self) -> Notes:
        """Tokens and rows of the step, its phase and block size."""
        return self._notes

    def state_dict(self) -> dict[str, Any]:
        """The loader's place in the shards, and the sigma of the noise, which a resumed run could not find again: its
        default is of the weights the run began with."""
        noise = {} if self.noise is None else {"embedding_sigma": self.noise.sigma}
        return {"loader": self.loader.state_dict(), **noise}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the very next row. DataError where the shards or the seed are others, unless the settings say that
        they may: the rows then begin anew."""
        try:
            self.loader.load_state_dict(state["loader"])
        except OtherData as error:
            if not self.training.config.train.override_recorded:
                raise DataError(
                    f"{error}; resume with those, or say {OVERRIDE} to begin with the first rows"
                ) from error
            if self.training.ranks.first:
                self.training.console.warn(f"{error}; the rows begin anew")
        if self.noise is not None and not self.training.config.model.embedding_noise.sigma:
            self.noise.sigma = float(state.get("embedding_sigma", self.noise.sigma))
        self._rows = iter(self.loader)


def _earlier(training: Training) -> list[Earlier]:
    opened = [
        (ShardSet.open(fetched(one.data) / one.split) if one.data else None, one.share)
        for one in training.config.train.replay
    ]
    for shards in [shards for shards, _ in opened if shards is not None]:
        shards.require_whole()
    return [earlier_rows(shards, share, training.shards) for shards, share in opened]


def _embedding_noise(training: Training) -> EmbeddingNoise | None:
    wanted, denoiser = training.config.model.embedding_noise, training.loaded.denoiser
    if not wanted.steps:
        return None
    return EmbeddingNoise(denoiser, wanted.steps, wanted.sigma or None, training.config.seed)


def step_seed(seed: int, step: int, micro: int = 0) -> int:
    """Seed of the noise of a step. Objectives key it by row id, so it is the same for every micro-batch and rank;
    embedding noise is not keyed by row and takes `micro`, counted over accumulation and ranks."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + micro * 0x94D049BB133111EB) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93) & (2**64 - 1)
    return (mixed ^ (mixed >> 32)) & (2**63 - 1)
