# A training run from configuration to saved model: inspect, plan, train, evaluate, save. convert-wsd and sft share it.
# Entry points: Session, open_session, train_session, shards_folder, is_causal.
# An autoregressive parent takes the same way with one stage and no mask token.
"""Conversion, SFT and parent training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext import registry
from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.core.block_ladder import Ladder
from hildanext.data.loader import Loader
from hildanext.data.shards import ShardSet, check_tokenizer
from hildanext.errors import DataError, HildaError, ModelError
from hildanext.models.load import NEW, Loaded, load_model
from hildanext.models.mask_token import EmbeddingNoise
from hildanext.models.save import save_model
from hildanext.progress import Console
from hildanext.run_dir import RunDir
from hildanext.train.checkpoint import Checkpoints, read_state, restore_optimizer, save_optimizer
from hildanext.train.distributed import Replica, World
from hildanext.train.evaluation import Evaluator, evaluation_batches
from hildanext.train.loop import Job, Recorder, Trainer
from hildanext.train.optim import build_optimizer, freeze
from hildanext.train.plan import make_ladder
from hildanext.train.plots import plot_losses
from hildanext.train.trackers import open_trackers


@dataclass(frozen=True)
class Session:
    """Everything a run needs before its first step. resumed: the checkpoint it continues, with its state."""

    config: Config
    console: Console
    run: RunDir
    world: World
    loaded: Loaded
    shards: ShardSet
    evaluation: ShardSet
    ladder: Ladder
    causal: bool
    resumed: Path | None
    state: Mapping[str, Any]


def is_causal(config: Config) -> bool:
    """Whether the objective is ordinary next-token prediction."""
    return config.objective.type == "autoregressive"


def shards_folder(config: Config) -> Path:
    """Where the tokenised shards of a run are."""
    name = config.tokenize.name or config.data.name
    return Path(config.train.data or Path(config.paths.data) / "tokenized" / name)


def _open_shards(config: Config, split: str) -> ShardSet:
    folder = shards_folder(config) / split
    if not folder.is_dir():
        raise DataError(f"train.data: no shards in {folder}; run `hildanext tokenize` first, or set train.data")
    return ShardSet.open(folder)


def _resumed(config: Config, run: RunDir) -> Path | None:
    if config.train.resume != "latest":
        return Path(config.train.resume) if config.train.resume else None
    newest = Checkpoints(run.checkpoints).newest()
    if newest is None:
        raise HildaError(f"train.resume: latest, but {run.checkpoints} holds no checkpoint; give --run-dir of the run")
    return newest


def _model_config(config: Config, resumed: Path | None, shards: ShardSet) -> ModelConfig:
    model = config.model
    if resumed is not None:
        return model.model_copy(update={"path": str(resumed)})
    if model.path == NEW and not model.new.tokenizer:
        tokenizer = str(shards.manifest.get("tokenizer", ""))
        return model.model_copy(update={"new": model.new.model_copy(update={"tokenizer": tokenizer})})
    return model


def open_session(config: Config, console: Console, run: RunDir, world: World) -> Session:
    """Model, shards and ladder, checked against each other. DataError where the tokenizers differ."""
    resumed = _resumed(config, run)
    shards = _open_shards(config, config.train.split)
    loaded = load_model(_model_config(config, resumed, shards), console)
    check_tokenizer(shards, loaded.tokenizer)
    state = read_state(resumed) if resumed is not None else {}
    causal = is_causal(config)
    ladder = make_ladder(config, int(shards.manifest["window"]), world.size, causal)
    evaluation = _open_shards(config, config.train.eval_split)
    return Session(config, console, run, world, loaded, shards, evaluation, ladder, causal, resumed, state)


class _Recorder(Recorder):
    def __init__(self, session: Session, job: Job, evaluator: Evaluator) -> None:
        self.session, self.job, self.evaluator = session, job, evaluator
        self.parent: float | None = session.state.get("parent_nll")
        self.checkpoints = Checkpoints(session.run.checkpoints, job.config.train.keep_last, job.config.train.keep_best)
        self.history: list[dict[str, Any]] = list(session.state.get("history", []))

    def save(self, step: int, state: Mapping[str, Any]) -> str:
        """Write a checkpoint on the first rank."""
        full = {**state, "parent_nll": self.parent, "history": self.history}
        return str(self.checkpoints.save(step, full, self._files))

    def _files(self, folder: Path) -> None:
        save_model(self.session.loaded.denoiser, self.session.loaded.tokenizer, folder, meta_of(self.session))
        save_optimizer(self.job.choice.optimizer, folder)

    def measure(self, step: int) -> Mapping[str, Any]:
        """The evaluation of the model at a step."""
        if self.session.causal:
            nll = self.evaluator.causal(self.job.model)
            record: dict[str, Any] = {"eval_nll": nll, "causal_nll": nll}
        else:
            record = {**self.evaluator.measure(self.job.model), "parent_nll": self.parent}
        self.history.append({"step": step, **record})
        return record


def meta_of(session: Session) -> Any:
    """hildanext.json of what the run saves."""
    meta = session.loaded.meta
    parent = meta.parent or (str(session.loaded.path.name) if session.loaded.path else None)
    block = None if session.causal else session.ladder.last
    return meta.model_copy(update={"block": block, "parent": parent, "run": session.run.path.name})


def _job(session: Session) -> Job:
    config, world, denoiser = session.config, session.world, session.loaded.denoiser
    freeze(denoiser, config.optimizer)
    if config.train.gradient_checkpointing:
        denoiser.model.gradient_checkpointing_enable({"use_reentrant": False})
    model: Any = denoiser if world.kind == "none" else Replica(denoiser, world)
    choice = build_optimizer(denoiser, config.optimizer)
    if choice.reason:
        session.console.warn(choice.reason)
        session.run.log(choice.reason)
    train = config.train
    loader = Loader(
        session.shards, train.batch, config.seed, rank=world.rank, world=world.size, workers=train.workers,
        shorten=train.shorten,
    )  # fmt: skip
    objective = registry.build("objectives", config.objective, "objective")
    return Job(
        config, model, denoiser, objective, session.ladder, loader, choice, world, session.run, session.console,
        _noise(session),
    )  # fmt: skip


def _noise(session: Session) -> Any:
    wanted = session.config.model.embedding_noise
    if not wanted.steps or session.causal:
        return None
    return EmbeddingNoise(session.loaded.denoiser, wanted.steps, wanted.sigma or None, session.config.seed)


def train_session(session: Session) -> dict[str, Any]:
    """Train, evaluate, save; returns the report, which is also report.json. Interrupted and RunError pass through."""
    job = _job(session)
    config = session.config
    blocks = session.ladder.blocks
    rows = evaluation_batches(
        session.evaluation, config.train.eval_rows, config.train.batch, session.loaded.device
    )  # fmt: skip
    recorder = _Recorder(session, job, Evaluator(rows, blocks, config.train.eval_samples, config.seed))
    step = int(session.state.get("step", 0))
    trainer = Trainer(job, recorder, open_trackers(config.train.trackers, session.run.path, step), step)
    _start(session, job, trainer, recorder)
    if job.noise is not None:
        with job.noise:
            trainer.fit()
    else:
        trainer.fit()
    trainer.close()
    return _finish(session, job, recorder)


def _start(session: Session, job: Job, trainer: Trainer, recorder: _Recorder) -> None:
    _facts(session, job)
    if session.resumed is not None:
        restore_optimizer(job.choice.optimizer, session.resumed)
        job.loader.load_state_dict(session.state["loader"])
        trainer.skipped, trainer.saved = int(session.state["skipped"]), str(session.resumed)
        session.console.say(f"resumed from {session.resumed} at step {trainer.step}")
        return
    if not session.causal and session.loaded.path is not None:
        if session.config.train.parity:
            _check_parity(session)
        recorder.parent = recorder.evaluator.causal(job.model)
    trainer.measure()


def _check_parity(session: Session) -> None:
    from hildanext.models.report import parity

    found = parity(session.loaded)
    session.run.write_json("parity.json", found)
    if not found["ok"]:
        raise ModelError(
            f"train.parity: the adapter changes the parent's logits ({found}); this model is not supported"
        )


def _facts(session: Session, job: Job) -> None:
    loaded = session.loaded
    session.run.environment(
        device=str(loaded.device), dtype=str(loaded.dtype), dtype_reason=loaded.dtype_reason,
        optimizer=job.choice.name, optimizer_reason=job.choice.reason, world=session.world.size,
        parallel=session.world.kind, data_hash=session.shards.manifest["tokenizer_hash"],
    )  # fmt: skip


def _finish(session: Session, job: Job, recorder: _Recorder) -> dict[str, Any]:
    folder = save_model(
        session.loaded.denoiser, session.loaded.tokenizer, session.run.path / "model", meta_of(session)
    )  # fmt: skip
    report = {
        "model": str(folder), "run": str(session.run.path), "steps": session.ladder.steps,
        "optimizer": job.choice.name, "parent_nll": recorder.parent,
        "first": recorder.history[0] if recorder.history else {}, "last": recorder.history[-1],
        "stages": [vars(stage) for stage in session.ladder.stages],
    }  # fmt: skip
    session.run.write_json("report.json", report)
    plot = plot_losses(session.run.path, session.ladder)
    session.console.say(plot.reason or f"plot: {plot.path}")
    return report
