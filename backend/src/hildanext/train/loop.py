# The training loop, on one device or many ranks. It knows no objective, no loader, no ladder: a Work makes the steps.
# Entry points: Work (what steps are made of), Notes, Trainer.fit, Recorder (hooks of a run), evaluating.
# Losses are sums over micro-batches and ranks divided once per step; one transfer of numbers from the device per step.
# Everything mutable of a run is in Trainer and in its Work.
"""Optimiser steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from hildanext.config.train import OptimizerConfig, TrainConfig
from hildanext.core.types import LossReport
from hildanext.errors import Interrupted, RunError
from hildanext.models.hardware import peak_memory
from hildanext.progress import Console
from hildanext.run_dir import StopRequest
from hildanext.train.distributed import Ranks
from hildanext.train.optim import learning_rate, set_rate

COUNTED = ("m2t", "t2t", "keep", "autoregressive")
OWN = ("step", "skipped", "eval_nll")


@dataclass(frozen=True)
class Notes:
    """What a work says of the step it has just made. tokens: of all ranks, for the speed; rows: what went into it, for
    the message on a loss that is not finite; record: plain values for the step's line of metrics.jsonl."""

    tokens: int
    rows: Sequence[int] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


class Work(Protocol):
    """What the steps of a run are made of: rows under an objective, rollouts and epochs over them, a teacher's answers.
    A work calls the model forward only; autocast, backward, ranks, clipping and the optimiser are the loop's."""

    def micro_batches(self, step: int) -> Iterator[Callable[[], LossReport]]:
        """The forwards of a step counted from 0: at least one, as many and with the same names on every rank. All are
        asked for before the first runs, so data may be drawn from the model here; then each runs once, in order."""
        ...

    def notes(self) -> Notes:
        """Of the step whose forwards have run."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the work stands between two steps, buffers included: JSON values and tensors, for every rank (all of
        them call it, the first one's is written). Its names stand beside the loop's own `step skipped eval_nll`."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what state_dict gave, among other entries. Whatever is drawn afterwards equals what an
        uninterrupted run would have drawn."""
        ...


class Recorder:
    """Hooks of a run, called at step boundaries on every rank. These do nothing: a training that leaves no files."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take the line of a step, or of an evaluation (`eval`)."""

    def measure(self, step: int) -> Mapping[str, Any]:
        """Evaluate; the record, with `eval_nll`."""
        return {}

    def save(self, step: int, state: Mapping[str, Any], now: bool = True) -> str:
        """Write a checkpoint; returns its path, empty where there is none, or, unless it must be there `now`, none
        yet."""
        return ""

    def busy(self) -> bool:
        """Whether this rank still writes a checkpoint that was not due at once."""
        return False

    def written(self) -> str:
        """Called on every rank when none is busy: such a checkpoint's path, once; empty where there is none."""
        return ""

    def finishing(self) -> bool:
        """Whether the run was asked to end with this step as if it were the last; one rank's yes is enough."""
        return False

    def close(self) -> None:
        """No further line comes."""


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside, training mode afterwards: for measurements, and for a work that draws from the model."""
    model.eval()
    try:
        yield
    finally:
        model.train()


@dataclass
class Trainer:
    """One run of `steps` steps. model: the nn.Module in training, or its Replica; step: optimiser steps done; skipped:
    steps dropped for a loss that was not finite; saved: the newest checkpoint."""

    work: Work
    model: Any
    optimizer: torch.optim.Optimizer
    steps: int
    rates: OptimizerConfig
    train: TrainConfig
    recorder: Recorder = field(default_factory=Recorder)
    ranks: Ranks = field(default_factory=Ranks)
    console: Console = field(default_factory=lambda: Console(quiet=True))
    step: int = 0
    skipped: int = 0
    saved: str = ""
    eval_nll: float | None = None
    measured: int = -1

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device

    def fit(self) -> None:
        """Train to the last step. Interrupted (state saved) on SIGTERM or Ctrl-C; RunError on a loss not finite."""
        self.model.train()
        with StopRequest() as stop, self.console.bar("training", self.steps, self.step) as bar:
            try:
                finishing = False
                while self.step < self.steps and not finishing:
                    record, stopping, finishing = self._advance(stop.received is not None, self.recorder.finishing())
                    self.recorder.write(record)
                    shown = {"loss": record["loss"], "tokens/s": round(record["tokens_per_second"])}
                    bar.advance(1, **shown, **self.work.notes().record)
                    self._due(stopping, finishing)
                    bar.advance(0, **({} if self.eval_nll is None else {"evaluation": self.eval_nll}))
            finally:
                self.recorder.close()

    def _advance(self, stopping: bool, finishing: bool) -> tuple[dict[str, Any], bool, bool]:
        begun, spent = time.perf_counter(), time.process_time()
        rate = learning_rate(self.rates, self.step, self.steps)
        set_rate(self.optimizer, rate)
        forwards = list(self.work.micro_batches(self.step))
        if not forwards:
            raise ValueError(f"work: no micro-batch at step {self.step}; every step needs one")

        reports = []
        for number, forward in enumerate(forwards, start=1):
            with self._autocast(), self.ranks.sync(self.model, last=number == len(forwards)):
                report = forward()
                report.total.backward()  # type: ignore[no-untyped-call]
            reports.append(report)

        asked = {"stopping": stopping, "finishing": finishing, "busy": self.recorder.busy()}
        sums = self._summed(reports, asked)
        if not sums["busy"]:
            self.saved = self.recorder.written() or self.saved
        normaliser = max(sums["normaliser"], 1e-12)
        norm = self._clip(self.ranks.size / normaliser)
        notes = self.work.notes()
        finite = math.isfinite(sums["total"]) and math.isfinite(norm)
        if finite:
            self.optimizer.step()
        else:
            self._refuse(notes.rows)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

        seconds = time.perf_counter() - begun
        record = {
            "step": self.step, "loss": sums["total"] / normaliser if finite else None, **_means(sums), **notes.record,
            "lr": rate, "grad_norm": norm if finite else None, "tokens_per_second": round(notes.tokens / seconds, 1),
            "seconds": round(seconds, 6), "processor": round(time.process_time() - spent, 6),
            "memory": peak_memory(self.device), "time": round(time.time(), 3),
        }  # fmt: skip
        return record, sums["stopping"] > 0, sums["finishing"] > 0

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted = self.train.autocast
        return torch.autocast(self.device.type, getattr(torch, wanted)) if wanted != "none" else nullcontext()

    def _summed(self, reports: list[LossReport], asked: Mapping[str, bool]) -> dict[str, float]:
        zero = torch.zeros((), device=self.device)
        rows = [
            {
                "total": r.total.detach(),
                "normaliser": r.normaliser,
                **{name: zero + wish for name, wish in asked.items()},
            }
            | {f"part.{name}": value for name, value in r.parts.items()}
            | {f"count.{name}": value for name, value in r.counts.items()}
            for r in reports
        ]
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = torch.stack([torch.stack([row.get(name, zero).float() for name in names]) for row in rows])
        return dict(zip(names, self.ranks.sum(table.double().sum(0)).tolist(), strict=True))

    def _clip(self, scale: float) -> float:
        every = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        meshes = list(dict.fromkeys(getattr(p, "device_mesh", None) for p in every))
        parts = [[p for p in every if getattr(p, "device_mesh", None) == mesh] for mesh in meshes]
        norms = []
        for part in parts:  # torch multiplies no list of whole and shared tensors, nor over several meshes
            torch._foreach_mul_([p.grad for p in part], scale)
            norm = torch.nn.utils.get_total_norm([p.grad for p in part if p.grad is not None])
            norms.append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        total = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        for part in parts:
            torch.nn.utils.clip_grads_with_norm_(part, self.rates.clip or math.inf, total)
        return float(total)

    def _refuse(self, rows: Sequence[int]) -> None:
        self.skipped += 1
        allowed = self.train.skip_nonfinite
        where = f"train: loss or gradient not finite at step {self.step}" + (f", rows {[*rows]}" if rows else "")
        if self.skipped > allowed:
            raise RunError(
                f"{where}; {self.skipped - 1} steps were skipped, {allowed} are allowed; the last good checkpoint is"
                f" {self.saved or 'none'}; look at these rows, or lower optimizer.lr"
            )
        self.console.warn(f"{where}; skipped ({self.skipped} of {allowed})")

    def _due(self, stopping: bool, finishing: bool) -> None:
        train, last = self.train, self.step == self.steps or (finishing and not stopping)
        if not stopping and (last or (train.eval_every and self.step % train.eval_every == 0)):
            self.measure()
        if stopping or last or (train.checkpoint_every and self.step % train.checkpoint_every == 0):
            self.saved = self.recorder.save(self.step, self.state(), now=stopping or last) or self.saved
        if stopping and not last:
            way = f"resume with --set train.resume={self.saved}" if self.saved else "nothing was saved"
            raise Interrupted(f"train: stopped at step {self.step}; {way}")

    def measure(self) -> None:
        """Evaluate the model as it is and record it."""
        with evaluating(self.model):
            record = dict(self.recorder.measure(self.step))
        self.eval_nll, self.measured = record.get("eval_nll"), self.step
        self.recorder.write({"step": self.step, "eval": record})

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside weights and optimiser. ValueError where the work uses a name of ours."""
        fresh = self.eval_nll if self.measured == self.step else None
        theirs = self.work.state_dict()
        if theirs.keys() & set(OWN):
            raise ValueError(f"work: its state may not use the names {', '.join(OWN)}")
        return dict(zip(OWN, (self.step, self.skipped, fresh), strict=True)) | theirs

    def resume(self, state: Mapping[str, Any], saved: str) -> None:
        """Go on from the state of the checkpoint `saved`; weights and optimiser are the recorder's."""
        self.step, self.skipped, self.saved = int(state["step"]), int(state["skipped"]), saved
        self.work.load_state_dict(state)


def _means(sums: Mapping[str, float]) -> dict[str, Any]:
    means: dict[str, Any] = {}
    for name in [name.removeprefix("part.") for name in sums if name.startswith("part.")]:
        count = sums.get(f"count.{name}", sums["normaliser"])
        means[name] = sums[f"part.{name}"] / count if count else 0.0
    tokens = {f"{name}_tokens": int(sums[f"count.{name}"]) for name in COUNTED if f"count.{name}" in sums}
    return {name: value for name, value in means.items() if not name.startswith("block_")} | tokens
