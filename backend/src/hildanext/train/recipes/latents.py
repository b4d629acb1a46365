# Latent diffusion models: rows of shards under the loss of a type of hildanext/latents, on a frozen discrete parent.
# Entry points: latent_command, Fitting (the Work), Terms (what evaluations measure).
# Loop, run directory, exact resume and model files are those of every training; the noise is seeded by (seed, step,
# micro-batch), and all else that moves is a buffer of the model.
"""Recipe of latent models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hildanext.config import Config
from hildanext.core.batches import stacked
from hildanext.core.latent import LatentType
from hildanext.core.types import Batch, LossReport
from hildanext.data.loader import Loader, OtherData
from hildanext.errors import ConfigError, DataError, ModelError
from hildanext.models.kind import kind_of
from hildanext.models.latent import LatentDenoiser, ground_of, kind_in, latent_of, new_latent
from hildanext.models.load import NEW, Loaded, load_model
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.train.loop import Notes, Trainer
from hildanext.train.recipes.conversion import step_seed
from hildanext.train.recipes.reference import require_single
from hildanext.train.recorder import RunRecorder
from hildanext.train.resume import OVERRIDE
from hildanext.train.training import Training, open_training, trainable

KIND = "latent"
MOMENT, EVALUATED = 1 << 23, 1 << 24
LAST = 1.0 - 1e-9


def latent_command(config: Config, console: Console, path: Path | None) -> dict[str, Any]:
    """Train a latent model in a run directory; the report of every training, `terms` of the loss in its evaluations.
    ConfigError for settings that a latent model has no use for."""
    kind: LatentType = build("latents", config.latent.model, "latent.model")
    _require_plain(config)
    ladder = config.ladder.model_copy(update={"fixed": kind.block})
    with open_training(config.model_copy(update={"ladder": ladder}), console, KIND, path) as opened:
        training = replace(opened, loaded=_loaded(opened))
        model, choice = trainable(training)
        work, recorder = Fitting(training, model), TermsRecorder(training, model, choice)
        trainer = Trainer(
            work, model, choice.optimizer, training.ladder.steps, config.optimizer, config.train, recorder,
            training.ranks, training.console,
        )  # fmt: skip
        recorder.begin(trainer)
        trainer.fit()
        return recorder.finish({})


def _require_plain(config: Config) -> None:
    if config.model.path == NEW:
        raise ConfigError("model.path new: a latent model is built on a trained one; name it")
    if config.model.adapter.kind != "none":
        raise ConfigError(
            f"model.adapter.kind {config.model.adapter.kind}: a latent model trains whole; set it to none"
        )
    if config.train.gradient_checkpointing:
        raise ConfigError("train.gradient_checkpointing: latent models have none; set it to false")
    if config.train.panels_every:
        raise ConfigError("train.panels_every: a latent model has no canvas to draw; set it to 0")
    if config.train.replay:
        raise ConfigError("train.replay: the latent recipe mixes nothing in; leave it out")


def _loaded(opened: Training) -> Loaded:
    config, loaded = opened.config, opened.loaded
    require_single(config, opened.ranks.size)
    if opened.resumed is not None:
        _attach(latent_of(loaded.denoiser), config)
        return loaded
    if kind_of(loaded.meta).engine == KIND:
        raise ModelError(
            f"model.path {config.model.path}: is a latent model; give the discrete one it is to be built on"
        )
    made = new_latent(loaded, config.latent.model.model_dump(), config.seed)
    opened.console.say(
        f"latent {config.latent.model.type}: {sum(one.numel() for one in made.parameters()):,} parameters on"
        f" {config.model.path}"
    )
    kept = {} if made.reader is None else loaded.meta.decode  # thresholds are of a model that has some
    return replace(loaded, denoiser=made, meta=loaded.meta.model_copy(update={"kind": KIND, "decode": kept}))


def _attach(model: LatentDenoiser, config: Config) -> None:
    kind = kind_in(model.section, "the checkpoint")
    if kind.parent != "training":
        return
    parent = load_model(config.model)
    ground = ground_of(parent)
    if ground.facts() != model.latent.ground.facts():
        raise ModelError(f"model.path {config.model.path}: is not the model that the checkpoint was built on")
    model.attach(ground, parent.meta)


class Fitting:
    """A step is `train.accumulate` batches of the shards under the model's own loss."""

    def __init__(self, training: Training, model: LatentDenoiser) -> None:
        train = training.config.train
        self.training, self.model = training, model
        self.loader = Loader(
            training.shards, train.batch, training.config.seed, 0, 1, train.workers, train.shorten, train.accumulate
        )
        self._rows, self._notes = iter(self.loader), Notes(0)

    def micro_batches(self, step: int) -> Iterator[Callable[[], LossReport]]:
        """The next batches."""
        batches = [next(self._rows) for _ in range(self.training.config.train.accumulate)]
        rows = [row for batch in batches for row in batch.ids]
        self._notes = Notes(sum(batch.tokens.numel() for batch in batches), rows)
        yield from (partial(self._loss, step, index, batch) for index, batch in enumerate(batches))

    def _loss(self, step: int, index: int, batch: Batch) -> LossReport:
        rng = torch.Generator().manual_seed(step_seed(self.training.config.seed, step, MOMENT + index))
        done = step / self.training.ladder.steps
        return self.model.latent.loss(batch.to(self.training.loaded.device), done, rng)

    def notes(self) -> Notes:
        """Tokens and rows of the step."""
        return self._notes

    def state_dict(self) -> dict[str, Any]:
        """The loader's place; all else is in the weights or follows from the step."""
        return {"loader": self.loader.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the very next row. DataError where the shards or the seed are others."""
        try:
            self.loader.load_state_dict(state["loader"])
        except OtherData as error:
            if not self.training.config.train.override_recorded:
                raise DataError(f"{error}; resume with those, or say {OVERRIDE}") from error
            self.training.console.warn(f"{error}; the rows begin anew")
        self._rows = iter(self.loader)


@dataclass(frozen=True)
class Terms:
    """The terms of the loss on fixed rows with fixed noise; samples: draws of it, a count."""

    batches: Sequence[Batch]
    seed: int
    samples: int
    chosen: int = 0

    @torch.no_grad()
    def measure(self, model: LatentDenoiser) -> dict[str, Any]:
        """{"eval_nll": the loss, by which checkpoints are chosen, "terms": {name: mean}}; no likelihood."""
        total, tokens = 0.0, 0.0
        sums, counts = dict[str, float](), dict[str, float]()
        for number, batch in enumerate(self.batches):
            for sample in range(self.samples):
                rng = torch.Generator().manual_seed(step_seed(self.seed, number, EVALUATED + sample))
                found = model.latent.loss(batch, LAST, rng)
                total, tokens = total + float(found.total), tokens + float(found.normaliser)
                sums |= {name: sums.get(name, 0.0) + float(value) for name, value in found.parts.items()}
                counts |= {name: counts.get(name, 0.0) + float(found.counts[name]) for name in found.parts}
        means = {name: value / max(counts[name], 1e-12) for name, value in sums.items()}
        return {"eval_nll": total / max(tokens, 1e-12), "terms": means}

    def causal(self, model: LatentDenoiser) -> tuple[None, None]:
        """A latent model has no likelihood."""
        return None, None


class TermsRecorder(RunRecorder):
    """The run directory of a latent model."""

    def evaluated(self) -> Terms:
        """The loss on the first rows of the evaluation shards."""
        train, shards = self.training.config.train, self.training.evaluation
        rows = min(train.eval_rows, len(shards))
        parts = [range(start, min(start + train.batch, rows)) for start in range(0, rows, train.batch)]
        made = [stacked((shards[row] for row in part), tuple(part)) for part in parts]
        batches = [batch.to(self.training.loaded.device) for batch in made]
        return Terms(batches, self.training.config.seed, train.eval_samples, self.training.ladder.last)

    def told(self, report: Mapping[str, Any]) -> None:
        """The loss and its terms before and after."""
        before, after, console = report["first"], report["last"], self.training.console
        rows = [("loss", f"{before['eval_nll']:.4f}", f"{after['eval_nll']:.4f}")]
        rows += [(name, f"{before['terms'][name]:.4f}", f"{value:.4f}") for name, value in after["terms"].items()]
        console.table(rows, ("evaluation, no likelihood", "before", "after"))
        console.say(f"model: {report['model']}")
