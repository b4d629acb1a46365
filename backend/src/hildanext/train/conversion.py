# A training run from opened training to saved model: report, train, evaluate, save. convert-wsd and sft share it.
# Entry points: train.
# The AR parent's NLL is measured before the first step, on the positions the bounds are measured on.
"""Conversion, SFT and parent training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from hildanext import registry
from hildanext.config import Config
from hildanext.core.types import Objective
from hildanext.data.loader import Loader
from hildanext.models.about import about
from hildanext.models.denoiser import module, network
from hildanext.models.inspection import conversion_report, require_parity
from hildanext.models.lora import add_adapter
from hildanext.models.mask_token import EmbeddingNoise
from hildanext.report.losses import plot_losses
from hildanext.train.checkpoint import Checkpoints
from hildanext.train.distributed import Replica
from hildanext.train.evaluation import Evaluator, evaluation_batches
from hildanext.train.loop import Job, Recorder, Trainer
from hildanext.train.optim import build_optimizer, freeze
from hildanext.train.saving import restore, write_files, write_model
from hildanext.train.trackers import open_trackers
from hildanext.train.training import Training


class _Recorder(Recorder):
    def __init__(self, training: Training, job: Job) -> None:
        train = job.config.train
        rows = evaluation_batches(training.evaluation, train.eval_rows, train.batch, training.loaded.device)
        ladder = training.ladder
        self.training, self.job = training, job
        self.evaluator = Evaluator(rows, ladder.blocks, ladder.last, train.eval_samples, job.config.seed)
        self.parent: float | None = training.state.get("parent_nll")
        self.checkpoints = Checkpoints(training.run.checkpoints, train.keep_last, train.keep_best)
        self.history: list[dict[str, Any]] = list(training.state.get("history", []))

    def save(self, step: int, state: Mapping[str, Any]) -> str:
        """Write a checkpoint; every rank takes part."""
        stages = [vars(stage) for stage in self.training.ladder.stages]
        full = {**state, "parent_nll": self.parent, "history": self.history, "stages": stages}
        full["base"] = str(self.training.loaded.path)
        optimizer = self.job.choice.optimizer
        return str(
            self.checkpoints.save(step, full, lambda path: write_files(self.training, optimizer, path), self.job.ranks)
        )

    def measure(self, step: int) -> Mapping[str, Any]:
        """The evaluation of the model at a step."""
        if self.training.causal:
            nll = self.evaluator.causal(self.job.model)
            record: dict[str, Any] = {"eval_nll": nll, "causal_nll": nll}
        else:
            record = {**self.evaluator.measure(self.job.model), "parent_nll": self.parent}
        self.history.append({"step": step, **record})
        return record


def _job(training: Training) -> Job:
    config, ranks, denoiser = training.config, training.ranks, training.loaded.denoiser
    if training.adapted:
        add_adapter(denoiser, config.model.adapter)
    trained = module(denoiser)
    freeze(trained, config.optimizer)
    if config.train.gradient_checkpointing:
        network(denoiser).gradient_checkpointing_enable({"use_reentrant": False})
    model: Any = denoiser if ranks.kind == "none" else Replica(denoiser, ranks)
    choice = build_optimizer(trained, config.optimizer)
    if choice.reason:
        training.console.warn(choice.reason)
        training.run.log(choice.reason)
    train, shards = config.train, training.shards
    loader = Loader(shards, train.batch, config.seed, ranks.rank, ranks.size, train.workers, train.shorten)
    return Job(
        config, model, trained, _objective(training, config), training.ladder, loader, choice, ranks, training.run,
        training.console, _noise(training),
    )  # fmt: skip


def _objective(training: Training, config: Config) -> Objective:
    objective: Objective = registry.build("objectives", config.objective, "objective")
    return objective.prepare(about(training.loaded, config.model))


def _noise(training: Training) -> Any:
    wanted = training.config.model.embedding_noise
    if not wanted.steps or training.causal:
        return None
    return EmbeddingNoise(training.loaded.denoiser, wanted.steps, wanted.sigma or None, training.config.seed)


def train(training: Training) -> dict[str, Any]:
    """Train, evaluate, save; returns the report, which is also report.json. Interrupted and RunError pass through."""
    facts = _inspected(training)
    job = _job(training)
    recorder = _Recorder(training, job)
    step = int(training.state.get("step", 0))
    names = training.config.train.trackers
    trackers = open_trackers(names, training.run.path, step) if training.ranks.first else []
    trainer = Trainer(job, recorder, trackers, step)
    _start(training, job, trainer, recorder)
    with job.noise or nullcontext():
        trainer.fit()
    return _finish(training, job, recorder, facts)


def _inspected(training: Training) -> dict[str, Any]:
    if training.causal or training.resumed is not None or not training.config.train.parity:
        return {}
    facts = conversion_report(training.loaded)
    require_parity(facts["parity"], training.config.model.path)
    if training.ranks.first:
        training.run.write_json("inspect.json", facts)
    return facts


def _start(training: Training, job: Job, trainer: Trainer, recorder: _Recorder) -> None:
    if training.ranks.first:
        _environment(training, job)
    if training.resumed is None:
        if not training.causal and training.loaded.path is not None:
            recorder.parent = recorder.evaluator.causal(job.model)
        trainer.measure()
        return
    restore(training, job.choice.optimizer)
    job.loader.load_state_dict(training.state["loader"])
    trainer.skipped, trainer.saved = int(training.state["skipped"]), str(training.resumed)
    training.console.say(f"resumed from {training.resumed} at step {trainer.step}")


def _environment(training: Training, job: Job) -> None:
    loaded = training.loaded
    training.run.environment(
        device=str(loaded.device), dtype=str(loaded.dtype), dtype_reason=loaded.dtype_reason,
        optimizer=job.choice.name, optimizer_reason=job.choice.reason, ranks=training.ranks.size,
        parallel=training.ranks.kind, model=str(loaded.path), data_hash=training.shards.manifest.get("input_hash"),
        tokenizer_hash=training.shards.manifest["tokenizer_hash"],
    )  # fmt: skip


def _finish(training: Training, job: Job, recorder: _Recorder, facts: Mapping[str, Any]) -> dict[str, Any]:
    folder = write_model(training, training.run.path / "model")
    best = [path.name for path in recorder.checkpoints.best(job.config.train.keep_best)]
    report = {
        "model": str(folder), "run": str(training.run.path), "steps": training.ladder.steps,
        "optimizer": job.choice.name, "optimizer_reason": job.choice.reason, "parent_nll": recorder.parent,
        "first": recorder.history[0], "last": recorder.history[-1], "best": best,
        "stages": [vars(stage) for stage in training.ladder.stages], "inspected": dict(facts),
    }  # fmt: skip
    if training.ranks.first:
        training.run.write_json("report.json", report)
        plot = plot_losses(training.run.path, training.ladder)
        training.console.warn(plot.reason) if plot.reason else training.console.say(f"plot: {plot.path}")
        _say(training, report)
    return report


def _say(training: Training, report: Mapping[str, Any]) -> None:
    before, after = report["first"], report["last"]
    rows = [
        (f"block {block}", f"{before['nll'][block]:.4f}", f"{nll:.4f}") for block, nll in after.get("nll", {}).items()
    ]
    rows = rows or [("autoregressive", f"{before['eval_nll']:.4f}", f"{after['eval_nll']:.4f}")]
    if report["parent_nll"] is not None:
        rows.append(("AR parent", f"{report['parent_nll']:.4f}", ""))
    training.console.table(rows, ("evaluation NLL, nats/token", "before", "after"))
    training.console.say(f"model: {report['model']}")
