# The seam between the loop and what it works on: works of other kinds, resumed exactly, and a loop that knows none.
# Entry points: pytest.
# Replay draws rows from the model in training for two steps, then goes over them for two. The oracle of a resumed run
# is the uninterrupted one, bit by bit.
"""Tests of train/loop.py."""

from __future__ import annotations

import ast
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from train.material import QUIET, configuration, losses, records, stop_after

from hildanext.config.train import OptimizerConfig, TrainConfig
from hildanext.core.head import sample_tokens
from hildanext.core.linear_cross_entropy import HeadOptions
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch, LossReport
from hildanext.errors import Interrupted, RunError
from hildanext.train import loop
from hildanext.train.distributed import Ranks
from hildanext.train.loop import Notes, Recorder, Trainer, evaluating
from hildanext.train.optim import build_optimizer
from hildanext.train.recorder import RunRecorder
from hildanext.train.training import Training, open_training, trainable


class Replay:
    """Steps 0 and 1 of every four draw three rows each from the model and learn them; steps 2 and 3 learn all six in
    other orders. Nothing but the buffer is state: all randomness is seeded by the step."""

    def __init__(self, training: Training, model: Any) -> None:
        self.model, self.length = model, training.ladder.window
        self.buffer: list[Tensor] = []
        self._notes = Notes(0)

    def micro_batches(self, step: int) -> Iterator[Callable[[], LossReport]]:
        rng = torch.Generator().manual_seed(step)
        if step % 4 < 2:
            self.buffer = [*(self.buffer if step % 4 else []), self._drawn(rng)]
            phase, rows = "collect", self.buffer[-1]
        else:
            every = torch.cat(self.buffer)
            phase, rows = "epochs", every[torch.randperm(len(every), generator=rng)]
        self._notes = Notes(rows.numel(), (), {"phase": phase, "held": sum(map(len, self.buffer))})
        for number, part in enumerate(rows.split(2)):
            yield partial(self._loss, part, 97 * step + number)

    def _drawn(self, rng: torch.Generator) -> Tensor:
        masks = torch.full((3, self.length), self.model.mask_id)
        with evaluating(self.model), torch.no_grad():
            features = self.model.noisy_features(masks, _batch(masks), self.length, masks == masks)
            uniform = torch.rand(masks.numel(), generator=rng, dtype=torch.float64)
            return sample_tokens(features, self.model.head(), uniform, HeadOptions(self.model.mask_id)).view_as(masks)

    def _loss(self, rows: Tensor, seed: int) -> LossReport:
        return MaskAndEdit().loss(self.model, _batch(rows), 4, torch.Generator().manual_seed(seed))

    def notes(self) -> Notes:
        return self._notes

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": self.buffer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.buffer = list(state["buffer"])


def _batch(tokens: Tensor) -> Batch:
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))


class Forgetful(Replay):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.buffer = [torch.zeros_like(rows) for rows in state["buffer"]]


def replay(path: Path, shards: Path, work: type[Replay] = Replay, **changes: Any) -> None:
    config = configuration(shards, train__steps=8, **changes)
    with open_training(config, QUIET, "replay", path) as training:
        model, choice = trainable(training)
        recorder = RunRecorder(training, model, choice)
        trainer = Trainer(
            work(training, model), model, choice.optimizer, 8, config.optimizer, config.train, recorder
        )  # fmt: skip
        recorder.begin(trainer)
        trainer.fit()
        recorder.finish({})


@pytest.fixture(scope="module")
def whole(shards: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay")
    replay(path, shards, model__path=str(parent))
    return path


def resumed(path: Path, shards: Path, parent: Path, step: int, work: type[Replay] = Replay) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step - 1, signal.SIGTERM)
        with pytest.raises(Interrupted, match=f"step {step}"):
            replay(path, shards, work, model__path=str(parent))
    replay(path, shards, work, model__path=str(parent), train__resume="latest")
    return losses(path)


@pytest.mark.parametrize(("step", "held"), [(5, 3), (7, 6)])
def test_a_work_of_two_phases_stopped_in_either_goes_on_as_if_it_had_not_been(
    step: int, held: int, whole: Path, shards: Path, parent: Path, tmp_path: Path
) -> None:
    assert resumed(tmp_path, shards, parent, step) == losses(whole)
    lines = [record for record in records(tmp_path) if "loss" in record]
    assert [line["phase"] for line in lines] == ["collect", "collect", "epochs", "epochs"] * 2
    assert lines[step - 1]["held"] == held
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (tmp_path, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_work_that_forgets_its_buffer_is_caught_by_that_comparison(
    whole: Path, shards: Path, parent: Path, tmp_path: Path
) -> None:
    assert resumed(tmp_path, shards, parent, 6, Forgetful) != losses(whole)


class Line(nn.Module):
    """One number w; a micro-batch with value x has the loss w x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))


class Values:
    """A work of the given values per step, which writes down what is asked of it."""

    def __init__(self, model: Line, *steps: tuple[float, ...]) -> None:
        self.model, self.steps, self.asked = model, steps, list[str]()
        self.kept: dict[str, Any] = {}

    def micro_batches(self, step: int) -> Iterator[Callable[[], LossReport]]:
        for number, value in enumerate(self.steps[step]):
            self.asked.append(f"ask {step}.{number}")
            yield partial(self._loss, step, number, value)

    def _loss(self, step: int, number: int, value: float) -> LossReport:
        self.asked.append(f"run {step}.{number}")
        total, one = self.model.w * value, torch.ones(())
        name = "even" if number % 2 == 0 else "odd"
        return LossReport(total, one, {name: total.detach()}, {name: one})

    def notes(self) -> Notes:
        return Notes(1, (), {"reward": 0.5})

    def state_dict(self) -> dict[str, Any]:
        return self.kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise AssertionError("nothing is resumed here")


class Lines(Recorder):
    def __init__(self) -> None:
        self.lines = list[Mapping[str, Any]]()

    def write(self, record: Mapping[str, Any]) -> None:
        if "loss" in record:
            self.lines.append(record)


class Watched(Ranks):
    seen: list[bool] = []  # noqa: RUF012

    def sync(self, model: Any, last: bool) -> AbstractContextManager[Any]:
        self.seen.append(last)
        return nullcontext()


def trainer(work: Values, recorder: Recorder | None = None, **more: Any) -> Trainer:
    rates = OptimizerConfig(lr=0.5, schedule="constant", warmup=0.0, weight_decay=0.0, clip=0.0)
    optimizer = torch.optim.SGD([{"params": [work.model.w], "factor": 1.0}])
    return Trainer(
        work, work.model, optimizer, len(work.steps), rates, TrainConfig(eval_every=0), recorder or Recorder(), **more
    )


def test_the_loop_divides_the_sums_of_a_step_once_and_keeps_no_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    work, recorder = Values(Line(), (1.0, 2.0, 6.0), (4.0,)), Lines()
    trainer(work, recorder).fit()
    assert work.model.w.item() == pytest.approx(1 - 0.5 * 3 - 0.5 * 4)
    assert [line["loss"] for line in recorder.lines] == pytest.approx([3.0, -0.5 * 4])
    assert list(tmp_path.iterdir()) == []


def test_a_line_has_the_works_own_numbers_and_the_mean_of_every_part_where_it_occurs() -> None:
    work, recorder = Values(Line(), (1.0, 2.0, 6.0)), Lines()
    trainer(work, recorder).fit()
    line = recorder.lines[0]
    assert (line["reward"], line["even"], line["odd"]) == (0.5, 3.5, 2.0)


def test_forwards_are_asked_for_first_and_gradients_cross_ranks_in_the_last_one_only() -> None:
    work, ranks = Values(Line(), (1.0, 2.0, 3.0)), Watched()
    trainer(work, ranks=ranks).fit()
    assert work.asked == ["ask 0.0", "ask 0.1", "ask 0.2", "run 0.0", "run 0.1", "run 0.2"]
    assert ranks.seen == [False, False, True]


def test_a_step_of_no_micro_batch_and_a_state_under_the_loops_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no micro-batch at step 1"):
        trainer(Values(Line(), (1.0,), ())).fit()
    work = Values(Line(), (1.0,))
    work.kept = {"step": 7}
    with pytest.raises(ValueError, match="may not use the names step"):
        trainer(work).fit()


def test_without_rows_and_checkpoints_a_bad_loss_and_a_signal_still_say_where() -> None:
    with pytest.raises(RunError, match=r"not finite at step 1; 0 steps were skipped.*is none"):
        trainer(Values(Line(), (1.0,), (float("inf"),))).fit()

    class Stopping(Recorder):
        def write(self, record: Mapping[str, Any]) -> None:
            if record.get("loss") and record["step"] == 1:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped at step 2; nothing was saved"):
        trainer(Values(Line(), (1.0,), (1.0,), (1.0,)), Stopping()).fit()


def test_the_model_is_in_training_mode_again_after_a_draw_that_failed() -> None:
    model = Line()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.training
        raise RuntimeError
    assert model.training


FOREIGN = ("registry", "core.block_ladder", "core.diffusion", "core.objectives", "data", "decoding", "train.recipes")


def foreign(text: str) -> list[str]:
    """The modules of objectives, ladders, loaders, decoding and recipes that a source imports."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in nodes for alias in node.names]
    return [name for name in names if any(name.startswith(f"hildanext.{module}.") for module in FOREIGN)]


def test_the_loop_imports_no_objective_no_loader_and_no_ladder() -> None:
    assert foreign(Path(loop.__file__).read_text(encoding="utf-8")) == []
    assert foreign("from hildanext.core.block_ladder import Ladder\nfrom hildanext.data.loader import Loader\n")


def test_the_rate_of_the_configuration_reaches_the_optimiser() -> None:
    moved = []
    for lr in (0.8, 0.001):
        model = Line()
        rates = OptimizerConfig(lr=lr, schedule="constant", warmup=0.0, weight_decay=0.0)
        optimizer = build_optimizer(model, rates).optimizer
        Trainer(Values(model, (1.0,)), model, optimizer, 1, rates, TrainConfig(eval_every=0)).fit()
        moved.append(1 - model.w.item())
    assert moved[0] == pytest.approx(800 * moved[1], rel=1e-4)
