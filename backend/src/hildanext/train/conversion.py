# A training run from opened session to saved model: report, train, evaluate, save. convert-wsd and sft share it.
# Entry points: train_session.
# The AR parent's NLL is measured before the first step, on the positions the bounds are measured on.
"""Conversion, SFT and parent training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from hildanext import registry
from hildanext.config import Config
from hildanext.data.loader import Loader
from hildanext.models.adapters import add_adapter
from hildanext.models.mask_token import EmbeddingNoise
from hildanext.models.report import conversion_report, require_parity
from hildanext.train.checkpoint import Checkpoints
from hildanext.train.distributed import Replica
from hildanext.train.evaluation import Evaluator, evaluation_batches
from hildanext.train.loop import Job, Recorder, Trainer
from hildanext.train.optim import build_optimizer, freeze
from hildanext.train.plots import plot_losses
from hildanext.train.saving import restore, write_files, write_model
from hildanext.train.session import Session
from hildanext.train.trackers import open_trackers


class _Recorder(Recorder):
    def __init__(self, session: Session, job: Job) -> None:
        train = job.config.train
        rows = evaluation_batches(session.evaluation, train.eval_rows, train.batch, session.loaded.device)
        ladder = session.ladder
        self.session, self.job = session, job
        self.evaluator = Evaluator(rows, ladder.blocks, ladder.last, train.eval_samples, job.config.seed)
        self.parent: float | None = session.state.get("parent_nll")
        self.checkpoints = Checkpoints(session.run.checkpoints, train.keep_last, train.keep_best)
        self.history: list[dict[str, Any]] = list(session.state.get("history", []))

    def save(self, step: int, state: Mapping[str, Any]) -> str:
        """Write a checkpoint; every rank takes part."""
        stages = [vars(stage) for stage in self.session.ladder.stages]
        full = {**state, "parent_nll": self.parent, "history": self.history, "stages": stages}
        full["base"] = str(self.session.loaded.path)
        optimizer = self.job.choice.optimizer
        return str(
            self.checkpoints.save(step, full, lambda path: write_files(self.session, optimizer, path), self.job.world)
        )

    def measure(self, step: int) -> Mapping[str, Any]:
        """The evaluation of the model at a step."""
        if self.session.causal:
            nll = self.evaluator.causal(self.job.model)
            record: dict[str, Any] = {"eval_nll": nll, "causal_nll": nll}
        else:
            record = {**self.evaluator.measure(self.job.model), "parent_nll": self.parent}
        self.history.append({"step": step, **record})
        return record


def _job(session: Session) -> Job:
    config, world, denoiser = session.config, session.world, session.loaded.denoiser
    if session.adapted:
        add_adapter(denoiser, config.model.adapter)
    freeze(denoiser, config.optimizer)
    if config.train.gradient_checkpointing:
        denoiser.model.gradient_checkpointing_enable({"use_reentrant": False})
    model: Any = denoiser if world.kind == "none" else Replica(denoiser, world)
    choice = build_optimizer(denoiser, config.optimizer)
    if choice.reason:
        session.console.warn(choice.reason)
        session.run.log(choice.reason)
    train, shards = config.train, session.shards
    loader = Loader(shards, train.batch, config.seed, world.rank, world.size, train.workers, train.shorten)
    return Job(
        config, model, denoiser, _objective(session, config), session.ladder, loader, choice, world, session.run,
        session.console, _noise(session),
    )  # fmt: skip


def _objective(session: Session, config: Config) -> Any:
    objective = registry.build("objectives", config.objective, "objective")
    tokenizer = session.loaded.tokenizer
    if not hasattr(objective, "for_vocabulary"):
        return objective
    return objective.for_vocabulary(max(tokenizer.get_vocab().values()) + 1, tuple(tokenizer.all_special_ids))


def _noise(session: Session) -> Any:
    wanted = session.config.model.embedding_noise
    if not wanted.steps or session.causal:
        return None
    return EmbeddingNoise(session.loaded.denoiser, wanted.steps, wanted.sigma or None, session.config.seed)


def train_session(session: Session) -> dict[str, Any]:
    """Train, evaluate, save; returns the report, which is also report.json. Interrupted and RunError pass through."""
    facts = _inspected(session)
    job = _job(session)
    recorder = _Recorder(session, job)
    step = int(session.state.get("step", 0))
    names = session.config.train.trackers
    trackers = open_trackers(names, session.run.path, step) if session.world.first else []
    trainer = Trainer(job, recorder, trackers, step)
    _start(session, job, trainer, recorder)
    with job.noise or nullcontext():
        trainer.fit()
    return _finish(session, job, recorder, facts)


def _inspected(session: Session) -> dict[str, Any]:
    if session.causal or session.resumed is not None or not session.config.train.parity:
        return {}
    facts = conversion_report(session.loaded)
    require_parity(facts["parity"], session.config.model.path)
    if session.world.first:
        session.run.write_json("inspect.json", facts)
    return facts


def _start(session: Session, job: Job, trainer: Trainer, recorder: _Recorder) -> None:
    if session.world.first:
        _environment(session, job)
    if session.resumed is None:
        if not session.causal and session.loaded.path is not None:
            recorder.parent = recorder.evaluator.causal(job.model)
        trainer.measure()
        return
    restore(session, job.choice.optimizer)
    job.loader.load_state_dict(session.state["loader"])
    trainer.skipped, trainer.saved = int(session.state["skipped"]), str(session.resumed)
    session.console.say(f"resumed from {session.resumed} at step {trainer.step}")


def _environment(session: Session, job: Job) -> None:
    loaded = session.loaded
    session.run.environment(
        device=str(loaded.device), dtype=str(loaded.dtype), dtype_reason=loaded.dtype_reason,
        optimizer=job.choice.name, optimizer_reason=job.choice.reason, world=session.world.size,
        parallel=session.world.kind, model=str(loaded.path), data_hash=session.shards.manifest.get("input_hash"),
        tokenizer_hash=session.shards.manifest["tokenizer_hash"],
    )  # fmt: skip


def _finish(session: Session, job: Job, recorder: _Recorder, facts: Mapping[str, Any]) -> dict[str, Any]:
    folder = write_model(session, session.run.path / "model")
    best = [path.name for path in recorder.checkpoints.best(job.config.train.keep_best)]
    report = {
        "model": str(folder), "run": str(session.run.path), "steps": session.ladder.steps,
        "optimizer": job.choice.name, "optimizer_reason": job.choice.reason, "parent_nll": recorder.parent,
        "first": recorder.history[0], "last": recorder.history[-1], "best": best,
        "stages": [vars(stage) for stage in session.ladder.stages], "inspected": dict(facts),
    }  # fmt: skip
    if session.world.first:
        session.run.write_json("report.json", report)
        plot = plot_losses(session.run.path, session.ladder)
        session.console.warn(plot.reason) if plot.reason else session.console.say(f"plot: {plot.path}")
        _say(session, report)
    return report


def _say(session: Session, report: Mapping[str, Any]) -> None:
    before, after = report["first"], report["last"]
    rows = [
        (f"block {block}", f"{before['nll'][block]:.4f}", f"{nll:.4f}") for block, nll in after.get("nll", {}).items()
    ]
    rows = rows or [("autoregressive", f"{before['eval_nll']:.4f}", f"{after['eval_nll']:.4f}")]
    if report["parent_nll"] is not None:
        rows.append(("AR parent", f"{report['parent_nll']:.4f}", ""))
    session.console.table(rows, ("evaluation NLL, nats/token", "before", "after"))
    session.console.say(f"model: {report['model']}")
