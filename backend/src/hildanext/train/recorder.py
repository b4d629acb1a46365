# What a run leaves behind: metrics, status, evaluations, checkpoints, and at the end the model and report.json.
# Entry points: RunRecorder (begin, finish, and the loop's hooks).
# The AR parent's NLL is measured before the first step, on the positions the bounds are measured on.
"""The record of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from hildanext.models.load import NEW, place
from hildanext.models.tensors import stored_dtype
from hildanext.report.losses import plot_losses
from hildanext.train.checkpoint import Checkpoints, ModelFiles
from hildanext.train.evaluation import Evaluator
from hildanext.train.loop import Recorder, Trainer
from hildanext.train.optim import OptimizerChoice
from hildanext.train.trackers import open_trackers
from hildanext.train.training import Training

STATUS_SECONDS = 2.0


class RunRecorder(Recorder):
    """The run directory of a training. model: the Denoiser that is evaluated; choice: the optimiser that is saved."""

    def __init__(self, training: Training, model: Any, choice: OptimizerChoice) -> None:
        config, ladder, state = training.config, training.ladder, training.state
        self.training, self.model, self.choice = training, model, choice
        self.evaluator = Evaluator.of(config, training.loaded, training.evaluation, ladder.blocks, ladder.last)
        self.checkpoints = Checkpoints(training.run.checkpoints, config.train.keep_last, config.train.keep_best)
        self.files = ModelFiles(
            training.loaded, choice.optimizer, training.ranks, training.adapted, training.meta
        )  # fmt: skip
        self.parent: float | None = state.get("parent_nll")
        self.parent_bare: float | None = state.get("parent_nll_without_ends")
        self.history: list[dict[str, Any]] = list(state.get("history", []))
        step, first = int(state.get("step", 0)), training.ranks.first
        self.trackers = open_trackers(config.train.trackers, training.run.path, step) if first else []
        self._status = 0.0

    def begin(self, trainer: Trainer) -> None:
        """Before the first step: env.json, then the first evaluation, or all that the resumed checkpoint holds."""
        training, resumed = self.training, self.training.resumed
        if training.ranks.first:
            self._environment()
        if resumed is not None:
            self._compare_machine()
            self.files.restore(resumed)
            trainer.resume(training.state, str(resumed))
            training.console.say(f"resumed from {resumed} at step {trainer.step}")
            return
        if not training.causal and training.loaded.path is not None:
            self.parent, self.parent_bare = self.evaluator.causal(self.model)
        trainer.measure()

    def _environment(self) -> None:
        loaded, ranks, shards = self.training.loaded, self.training.ranks, self.training.shards
        self.training.run.environment(
            device=str(loaded.device), dtype=str(loaded.dtype), dtype_reason=loaded.dtype_reason,
            again=self.training.resumed is not None, optimizer=self.choice.name,
            optimizer_reason=self.choice.reason, world=ranks.size, parallel=ranks.kind,
            model=str(loaded.path), data_hash=shards.manifest.get("input_hash"),
            tokenizer_hash=shards.manifest["tokenizer_hash"],
        )  # fmt: skip

    def _compare_machine(self) -> None:
        was, now = self.training.state.get("machine", {}), self._machine()
        changed = [
            f"{name} {was[name]} before, {now[name]} now" for name in now if was.get(name, now[name]) != now[name]
        ]
        if changed and self.training.ranks.first:
            text = f"train.resume: {'; '.join(changed)}: the run goes on, but not bit for bit as it would have"
            self.training.console.warn(text)
            self.training.run.log(text)

    def _machine(self) -> dict[str, Any]:
        loaded, config, ranks = self.training.loaded, self.training.config, self.training.ranks
        return {
            "threads": torch.get_num_threads(), "torch": str(torch.__version__), "device": loaded.device.type,
            "dtype": str(loaded.dtype), "attention": config.model.attention, "batch": config.train.batch,
            "accumulate": config.train.accumulate, "ranks": ranks.size,
        }  # fmt: skip

    def write(self, record: Mapping[str, Any]) -> None:
        """The line goes to every tracker, and now and then to status.json."""
        for tracker in self.trackers:
            tracker.write(record)
        if "loss" in record and self.training.ranks.first and time.monotonic() - self._status > STATUS_SECONDS:
            self._status = time.monotonic()
            self.training.run.status(step=record["step"], total=self.training.ladder.steps, loss=record["loss"])

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

    def save(self, step: int, state: Mapping[str, Any]) -> str:
        """Write a checkpoint; every rank takes part."""
        for tracker in self.trackers:
            tracker.flush()
        stages = [vars(stage) for stage in self.training.ladder.stages]
        full = {**state, **self._parents(), "history": self.history, "stages": stages}
        full |= {"base": str(self.training.loaded.path), "machine": self._machine()}
        saved = str(self.checkpoints.save(step, full, self.files.write, self.training.ranks))
        if self.training.ranks.first:
            self.training.run.status(step=step, total=self.training.ladder.steps, checkpoint=saved)
        return saved

    def close(self) -> None:
        """End the trackers."""
        for tracker in self.trackers:
            tracker.close()

    def finish(self, inspected: Mapping[str, Any]) -> dict[str, Any]:
        """Write the final model; returns the report, which is also report.json, and draws the losses."""
        training, run = self.training, self.training.run
        dtype = _parents_dtype(training)
        folder = self.files.write_model(run.path / "model", dtype)
        best = [path.name for path in self.checkpoints.best(training.config.train.keep_best)]
        report = {
            "model": str(folder), "run": str(run.path), "steps": training.ladder.steps,
            "optimizer": self.choice.name, "optimizer_reason": self.choice.reason, **self._parents(),
            "first": self.history[0], "last": self.history[-1], "best": best,
            "stages": [vars(stage) for stage in training.ladder.stages], "inspected": dict(inspected),
        }  # fmt: skip
        if training.ranks.first:
            run.write_json("report.json", report)
            plot = plot_losses(run.path, training.ladder)
            training.console.warn(plot.reason) if plot.reason else training.console.say(f"plot: {plot.path}")
            self._say(report)
        return report

    def _say(self, report: Mapping[str, Any]) -> None:
        before, after, console = report["first"], report["last"], self.training.console
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


def _parents_dtype(training: Training) -> torch.dtype | None:
    model = training.config.model
    if model.dtype != "auto" or model.path == NEW or not place(model.path).is_dir():
        return None
    if training.loaded.dtype != torch.float32 or stored_dtype(place(model.path)) != torch.bfloat16:
        return None  # float16 is not gone back to: trained weights may leave its range
    training.console.say("weights are written as bfloat16, as the parent's are; model.dtype=float32 keeps them whole")
    return torch.bfloat16
