# What a run leaves behind: metrics, status, evaluations, checkpoints, and at the end the model and report.json.
# Entry points: RunRecorder (begin, finish, and the loop's hooks).
# The AR parent's NLL is measured before the first step, on the positions the bounds are measured on.
"""The record of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hildanext.errors import ConfigError, HildaError
from hildanext.report.losses import plot_losses
from hildanext.train.checkpoint import ADVICE, STATE, Checkpoints, Writing
from hildanext.train.evaluation import Evaluator
from hildanext.train.loop import Recorder, Trainer
from hildanext.train.model_files import ModelFiles, written_dtype
from hildanext.train.optim import OptimizerChoice
from hildanext.train.panels import Panels
from hildanext.train.resume import settings
from hildanext.train.trackers import Tracker, open_trackers
from hildanext.train.training import Training

STATUS_SECONDS = 2.0


class RunRecorder(Recorder):
    """The run directory of a training. model: the Denoiser that is evaluated; choice: the optimiser that is saved."""

    def __init__(self, training: Training, model: Any, choice: OptimizerChoice) -> None:
        config, state = training.config, training.state
        self.training, self.model, self.choice = training, model, choice
        self.evaluator = self.evaluated()
        self.checkpoints = Checkpoints(training.run.checkpoints, config.train.keep_last, config.train.keep_best)
        self.files = ModelFiles(
            training.loaded, choice.optimizer, training.ranks, training.adapted, training.meta
        )  # fmt: skip
        self.parent: float | None = state.get("parent_nll")
        self.parent_bare: float | None = state.get("parent_nll_without_ends")
        self.history: list[dict[str, Any]] = list(state.get("history", []))
        self.trackers: list[Tracker] = []
        self.writing: Writing | None = None
        self._beside = training.ranks.beside() if _aside(training) else None
        self._status, self._step, self._wish = 0.0, 0, training.run.path / "finish"
        self.panels = Panels(training, training.loaded.denoiser) if _drawn(training) else None

    def evaluated(self) -> Any:
        """What measures the model: `measure` and `causal` of train.evaluation.Evaluator."""
        training, ladder = self.training, self.training.ladder
        return Evaluator.of(training.config, training.loaded, training.evaluation, ladder.blocks, ladder.last)

    def begin(self, trainer: Trainer) -> None:
        """Before the first step: env.json, then the first evaluation, or all that the resumed checkpoint holds. Nothing
        is written before that fits."""
        training, resumed = self.training, self.training.resumed
        if resumed is not None:
            self._resume(trainer, resumed)
        if training.ranks.first:
            self.trackers = open_trackers(training.config.train.trackers, training.run.path, trainer.step)
            training.run.begin()
            self._note(trainer)
        self._step = trainer.step
        if resumed is not None:
            training.console.say(f"resumed from {resumed} at step {trainer.step}")
            return
        if not training.causal and training.loaded.path is not None:
            self.parent, self.parent_bare = self.evaluator.causal(self.model)
        trainer.measure()

    def _resume(self, trainer: Trainer, resumed: Path) -> None:
        training, allowed = self.training, self.training.config.train.override_recorded
        changes = training.changes.on(training.state.get("machine", {}), self._machine())
        changes.require(resumed, allowed)
        if (anew := changes.anew()) and training.ranks.first:
            training.console.warn("train.resume: the checkpoint's optimiser is another; its moments begin anew")
        self.files.restore(resumed, optimizer=not anew)
        try:
            trainer.resume(training.state, str(resumed))
        except (KeyError, TypeError) as error:
            raise HildaError(f"{resumed / STATE}: damaged, it lacks {error}; {ADVICE}") from error
        if training.ranks.first:
            changes.told(training.console)

    def _leave_behind(self, step: int) -> None:
        moved, console, path = self.checkpoints.set_aside(step), self.training.console, self.training.run.path
        if moved:
            names = ", ".join(folder.name for folder in moved)
            console.warn(f"{names}: later than step {step}, now in {moved[0].parent}; remove what is not wanted")
        if (path / "model").is_dir():
            console.say(f"{path / 'model'} is of the run before, until this one ends and replaces it")

    def _note(self, trainer: Trainer) -> None:
        run, resumed = self.training.run, self.training.resumed
        if resumed is not None and resumed.resolve().parent == self.checkpoints.folder.resolve():
            self._leave_behind(trainer.step)
        if self._wish.exists():
            self.training.console.warn(f"{self._wish}: was there before the run began, and is removed")
            self._wish.unlink()
        ladder = self.training.ladder
        stages = [vars(stage) for stage in ladder.stages]
        run.write_json("plan.json", {"steps": ladder.steps, "window": ladder.window, "stages": stages})
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        run.status(step=trainer.step, total=trainer.steps, begun=now, first_step=trainer.step)
        self._environment()

    def finishing(self) -> bool:
        """Whether somebody put a file named `finish` into the run directory: it ends where it is, with a model."""
        return self.training.ranks.first and self._wish.exists()

    def _environment(self) -> None:
        loaded, ranks, shards = self.training.loaded, self.training.ranks, self.training.shards
        self.training.run.environment(
            device=str(loaded.device), dtype=str(loaded.dtype), dtype_reason=loaded.dtype_reason,
            again=self.training.resumed is not None, optimizer=self.choice.name,
            optimizer_reason=self.choice.reason, world=ranks.processes, parallel=ranks.kind,
            model=str(loaded.path), data_hash=shards.manifest.get("input_hash"),
            tokenizer_hash=shards.manifest["tokenizer_hash"],
        )  # fmt: skip

    def _machine(self) -> dict[str, Any]:
        loaded, config, ranks = self.training.loaded, self.training.config, self.training.ranks
        return {
            "threads": torch.get_num_threads(), "torch": str(torch.__version__), "device": loaded.device.type,
            "dtype": str(loaded.dtype), "attention": config.model.attention, "batch": config.train.batch,
            "accumulate": config.train.accumulate, "ranks": ranks.size, "optimizer": self.choice.name,
        }  # fmt: skip

    def write(self, record: Mapping[str, Any]) -> None:
        """The line goes to every tracker, and now and then to status.json."""
        for tracker in self.trackers:
            tracker.write(record)
        if "loss" in record and self.training.ranks.first and time.monotonic() - self._status > STATUS_SECONDS:
            self._status = time.monotonic()
            self.training.run.status(step=record["step"], total=self.training.ladder.steps, loss=record["loss"])
        every = self.training.config.train.panels_every
        if self.panels is not None and "loss" in record and record["step"] % every == 0:
            self._draw(self.panels, int(record["step"]))

    def _draw(self, panels: Panels, step: int) -> None:
        for tracker in self.trackers:
            tracker.flush()
        for kind, path in panels.draw(step):
            for tracker in self.trackers:
                tracker.picture(f"panels/{kind}", path, step)

    def measure(self, step: int) -> Mapping[str, Any]:
        """The evaluation of the model at a step."""
        if self.training.causal:
            nll, bare = self.evaluator.causal(self.model)
            record: dict[str, Any] = {"eval_nll": nll, "causal_nll": nll, "eval_nll_without_ends": bare}
        else:
            record = {**self.evaluator.measure(self.model), **self._parents()}
        self.history.append({"step": step, **record})
        return record

    def _parents(self) -> dict[str, float | None]:
        return {"parent_nll": self.parent, "parent_nll_without_ends": self.parent_bare}

    def save(self, step: int, state: Mapping[str, Any], now: bool = True) -> str:
        """Write a checkpoint; every rank takes part. Empty where it is being written while training goes on."""
        if self.writing is not None:
            self.written()
        for tracker in self.trackers:
            tracker.flush()
        stages = [vars(stage) for stage in self.training.ladder.stages]
        full = {**state, **self._parents(), "history": self.history, "stages": stages}
        full |= {"base": str(self.training.loaded.path), "machine": self._machine()}
        full |= {"settings": settings(self.training.config)}
        self._step = step
        if self._beside is not None and not now:
            start = partial(self._files().start, self._beside)
            self.writing = self.checkpoints.begin(step, full, start, self.training.ranks)
            return ""
        return self._said(self.checkpoints.save(step, full, self._files().write, self.training.ranks))

    def busy(self) -> bool:
        """Whether this rank still writes its part of a checkpoint."""
        return self.writing is not None and not self.writing.done

    def written(self) -> str:
        """The checkpoint that was being written, whole; empty where there was none. Every rank calls it."""
        writing, self.writing = self.writing, None
        return "" if writing is None else self._said(writing.finish())

    def _said(self, saved: Path) -> str:
        if self.training.ranks.first:
            step, total = int(saved.name.rpartition("-")[2]), self.training.ladder.steps
            self.training.run.status(step=step, total=total, checkpoint=str(saved))
        return str(saved)

    def _files(self) -> ModelFiles:
        *past, own = self.files.meta.history
        meta = self.files.meta.model_copy(update={"history": [*past, {**own, "steps": self._step}]})
        return replace(self.files, meta=meta)

    def close(self) -> None:
        """End the trackers."""
        for tracker in self.trackers:
            tracker.close()

    def finish(self, inspected: Mapping[str, Any]) -> dict[str, Any]:
        """Write the final model; returns the report, which is also report.json, and draws the losses."""
        training, run = self.training, self.training.run
        dtype = written_dtype(training.config.model, training.loaded.dtype, training.console)
        folder = self._files().write_model(run.path / "model", dtype)
        best = [path.name for path in self.checkpoints.best(training.config.train.keep_best)]
        report = {
            "model": str(folder), "run": str(run.path), "steps": self._step,
            "optimizer": self.choice.name, "optimizer_reason": self.choice.reason, **self._parents(),
            "first": self.history[0], "last": self.history[-1], "best": best,
            "stages": [vars(stage) for stage in training.ladder.stages], "inspected": dict(inspected),
        }  # fmt: skip
        if training.ranks.first:
            run.write_json("report.json", report)
            plot = plot_losses(run.path, training.ladder)
            training.console.warn(plot.reason) if plot.reason else training.console.say(f"plot: {plot.path}")
            self.told(report)
            self._wish.unlink(missing_ok=True)
        return report

    def told(self, report: Mapping[str, Any]) -> None:
        """Say at the end what the run changed."""
        before, after, console = report["first"], report["last"], self.training.console
        ladder = self.training.ladder
        if self._step < ladder.steps:
            block = "" if self.training.causal else f" at block {ladder.block(self._step - 1)}, for block {ladder.last}"
            console.warn(f"ended as asked at step {self._step} of {ladder.steps}; the model is written{block}")
        rows = [
            (f"block {size}", f"{before['nll'][size]:.4f}", f"{nll:.4f}") for size, nll in after.get("nll", {}).items()
        ]
        rows = rows or [("autoregressive", f"{before['eval_nll']:.4f}", f"{after['eval_nll']:.4f}")]
        if report["parent_nll"] is not None:
            rows.append(("AR parent", f"{report['parent_nll']:.4f}", ""))
        if report["parent_nll_without_ends"] is not None:
            first, last = (f"{side['eval_nll_without_ends']:.4f}" for side in (before, after))
            rows.append((f"block {self.evaluator.chosen}, without end tokens", first, last))
            rows.append(("AR parent, without end tokens", f"{report['parent_nll_without_ends']:.4f}", ""))
        console.table(rows, ("evaluation NLL, nats/token", "before", "after"))
        console.say(f"model: {report['model']}")


def _aside(training: Training) -> bool:
    if training.config.train.checkpoint_beside and not training.ranks.sharded:
        raise ConfigError(
            "train.checkpoint_beside: only where ranks share weights (fsdp, ep, tp), which are gathered into a copy"
            " anyway; leave it off"
        )
    return training.config.train.checkpoint_beside


def _drawn(training: Training) -> bool:
    if not training.config.train.panels_every or training.causal or not training.ranks.first:
        return False
    if training.ranks.sharded:
        training.console.warn(
            "train.panels_every: weights that are shared by ranks are not whole on one rank; no panels"
        )
        return False
    return True
