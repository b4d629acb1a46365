# The training loop: one for conversion, SFT and autoregressive parents, on one device or many ranks.
# Entry points: Job (what a loop works on), Trainer.fit. Everything mutable of a run is in Trainer.
# Losses are sums over micro-batches and ranks divided once per step. Noise is seeded by (seed, step, row), so a
# resumed run repeats an uninterrupted one exactly. One transfer of numbers from the device per step.
"""Optimiser steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hildanext.config import Config
from hildanext.core.block_ladder import Ladder
from hildanext.core.types import Batch, LossReport, Objective
from hildanext.errors import Interrupted, RunError
from hildanext.progress import Console
from hildanext.run_dir import RunDir, StopRequest
from hildanext.train.distributed import Ranks
from hildanext.train.memory import memory
from hildanext.train.optim import OptimizerChoice, set_rate
from hildanext.train.schedule import factor
from hildanext.train.trackers import Tracker

STATUS_SECONDS = 2.0
COUNTED = ("m2t", "t2t", "keep", "autoregressive")


def step_seed(seed: int, step: int, micro: int = 0) -> int:
    """Seed of the noise of a step. Objectives key it by row id, so it is the same for every micro-batch and rank;
    embedding noise is not keyed by row and takes `micro`, counted over accumulation and ranks."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + micro * 0x94D049BB133111EB) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93) & (2**64 - 1)
    return (mixed ^ (mixed >> 32)) & (2**63 - 1)


@dataclass(frozen=True)
class Job:
    """What a loop works on. model: the Denoiser the objective sees; module: the nn.Module whose gradients are clipped;
    noise: embedding noise or None; save and measure: see conversion.py."""

    config: Config
    model: Any
    module: torch.nn.Module
    objective: Objective
    ladder: Ladder
    loader: Any
    choice: OptimizerChoice
    ranks: Ranks
    run: RunDir
    console: Console
    noise: Any = None


class Recorder:
    """Hooks of a run, called at step boundaries: save(step, state), measure(step) -> record."""

    def save(self, step: int, state: Mapping[str, Any]) -> str:
        """Write a checkpoint; returns its path."""
        return ""

    def measure(self, step: int) -> Mapping[str, Any]:
        """Evaluate; the record, with `eval_nll`."""
        return {}


@dataclass
class Trainer:
    """One run. step: optimiser steps done; skipped: steps dropped for a loss that was not finite."""

    job: Job
    recorder: Recorder
    trackers: list[Tracker]
    step: int = 0
    skipped: int = 0
    saved: str = ""
    eval_nll: float | None = None
    measured: int = -1
    _rows: Iterator[Batch] | None = None
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _status: float = 0.0

    def fit(self) -> None:
        """Train to the last step. Interrupted (state saved) on SIGTERM or Ctrl-C; RunError on a loss not finite."""
        job = self.job
        self._rows, self._device = iter(job.loader), next(job.module.parameters()).device
        parameters = [p for group in job.choice.optimizer.param_groups for p in group["params"]]
        job.module.train()
        with StopRequest() as stop, job.console.bar("training", job.ladder.steps) as bar:
            bar.advance(self.step)
            try:
                while self.step < job.ladder.steps:
                    record = self._advance(parameters, stop.received is not None)
                    self._write(record, bar)
                    self._due(record["stopping"])
            finally:
                self.close()

    def _write(self, record: dict[str, Any], bar: Any) -> None:
        for tracker in self.trackers:
            tracker.write({name: value for name, value in record.items() if name != "stopping"})
        bar.advance(1, loss=record["loss"], phase=record["phase"], block=record["block"])
        if self.job.ranks.first and time.monotonic() - self._status > STATUS_SECONDS:
            self._status = time.monotonic()
            self.job.run.status(step=self.step, total=self.job.ladder.steps, loss=record["loss"])

    def _due(self, stopping: bool) -> None:
        train = self.job.config.train
        last = self.step == self.job.ladder.steps
        if not stopping and (last or (train.eval_every and self.step % train.eval_every == 0)):
            self.measure()
        if stopping or last or (train.checkpoint_every and self.step % train.checkpoint_every == 0):
            for tracker in self.trackers:
                tracker.flush()
            self.saved = self.recorder.save(self.step, self.state())
            if self.job.ranks.first:
                self.job.run.status(step=self.step, total=self.job.ladder.steps, checkpoint=self.saved)
        if stopping and not last:
            raise Interrupted(f"train: stopped at step {self.step}; resume with --set train.resume={self.saved}")

    def measure(self) -> None:
        """Evaluate the model as it is and track the record."""
        self.job.module.eval()
        record = dict(self.recorder.measure(self.step))
        self.job.module.train()
        self.eval_nll, self.measured = record.get("eval_nll"), self.step
        for tracker in self.trackers:
            tracker.write({"step": self.step, "eval": record})

    def state(self) -> dict[str, Any]:
        """What a checkpoint must say beside weights and optimiser."""
        fresh = self.eval_nll if self.measured == self.step else None
        loader = self.job.loader.state_dict()
        return {"step": self.step, "skipped": self.skipped, "eval_nll": fresh, "loader": loader}

    def close(self) -> None:
        """Write what the trackers hold back and end them."""
        for tracker in self.trackers:
            tracker.close()

    def _advance(self, parameters: list[Tensor], stopping: bool) -> dict[str, Any]:
        begun = time.perf_counter()
        job = self.job
        stage = job.ladder.stage(self.step)
        rate = job.config.optimizer.lr * factor(job.config.optimizer, self.step, job.ladder.steps)
        set_rate(job.choice.optimizer, rate)
        reports, ids = self._backward(stage.block)
        names, sums = self._sums(reports, stopping)
        scale = job.ranks.size / max(sums[1], 1e-12)
        norm = self._clip(parameters, scale)
        finite = math.isfinite(sums[0]) and math.isfinite(norm)
        self._apply(finite, ids)
        seconds = time.perf_counter() - begun
        tokens = job.config.train.batch * job.config.train.accumulate * job.ranks.size * job.ladder.window
        return {
            "step": self.step, "loss": sums[0] / max(sums[1], 1e-12) if finite else None,
            **_means(reports[0], dict(zip(names, sums, strict=True))), "phase": stage.phase, "block": stage.block,
            "lr": rate, "grad_norm": norm if finite else None, "tokens_per_second": round(tokens / seconds, 1),
            "seconds": round(seconds, 6), "memory": memory(self._device), "time": round(time.time(), 3),
            "stopping": sums[2] > 0,
        }  # fmt: skip

    def _backward(self, block: int) -> tuple[list[LossReport], list[int]]:
        job, count = self.job, self.job.config.train.accumulate
        reports, ids = [], list[int]()
        for index in range(count):
            batch = next(self._rows).to(self._device) if self._rows is not None else None
            assert batch is not None
            seed = step_seed(job.config.seed, self.step)
            if job.noise is not None:
                job.noise.set_scale(self.step)
                micro = 1 + index * job.ranks.size + job.ranks.rank
                job.noise.rng.manual_seed(step_seed(job.config.seed, self.step, micro))
            with self._autocast(), job.ranks.sync(job.model, index == count - 1):
                report = job.objective.loss(job.model, batch, block, torch.Generator().manual_seed(seed))
                report.total.backward()  # type: ignore[no-untyped-call]
            reports.append(report)
            ids.extend(batch.ids)
        return reports, ids

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted = self.job.config.train.autocast
        return torch.autocast(self._device.type, getattr(torch, wanted)) if wanted != "none" else nullcontext()

    def _sums(self, reports: list[LossReport], stopping: bool) -> tuple[list[str], list[float]]:
        parts, counts = reports[0].parts, reports[0].counts
        names = ["total", "normaliser", "stopping", *(f"part.{n}" for n in parts), *(f"count.{n}" for n in counts)]
        stop = torch.tensor(float(stopping), device=self._device)
        rows = [
            [r.total.detach(), r.normaliser, stop, *(r.parts[n] for n in parts), *(r.counts[n] for n in counts)]
            for r in reports
        ]
        values = torch.stack([torch.stack([v.float() for v in row]) for row in rows]).double().sum(0)
        found: list[float] = self.job.ranks.sum(values).tolist()
        return names, found

    def _clip(self, parameters: list[Tensor], scale: float) -> float:
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, scale)
        limit = self.job.config.optimizer.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _apply(self, finite: bool, ids: list[int]) -> None:
        if finite:
            self.job.choice.optimizer.step()
        else:
            self._refuse(ids)
        self.job.choice.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _refuse(self, ids: list[int]) -> None:
        self.skipped += 1
        allowed = self.job.config.train.skip_nonfinite
        where = f"train: loss or gradient not finite at step {self.step}, rows {ids}"
        if self.skipped > allowed:
            raise RunError(
                f"{where}; {self.skipped - 1} steps were skipped, {allowed} are allowed; the last good checkpoint is"
                f" {self.saved or 'none'}; look at these rows, or lower optimizer.lr"
            )
        self.job.console.warn(f"{where}; skipped ({self.skipped} of {allowed})")


def _means(report: LossReport, sums: Mapping[str, float]) -> dict[str, Any]:
    means: dict[str, Any] = {}
    for name in report.parts:
        count = sums.get(f"count.{name}", sums["normaliser"])
        means[name] = sums[f"part.{name}"] / count if count else 0.0
    tokens = {f"{name}_tokens": int(sums[f"count.{name}"]) for name in COUNTED if name in report.counts}
    return {name: value for name, value in means.items() if not name.startswith("block_")} | tokens
