# The toy's training in a process of its own, while the demo's other parts are measured beside it.
# Entry points: toy_training (a context), ToyTraining.trained, SEED.
# Two processes of one thread each use two cores better than one process of two threads: forwards this small gain little
# from a second thread. With one core the toy is trained where it is asked for.
"""Training of the toy beside the rest of the demo."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hildanext.environment import die_with_parent, usable_cores
from hildanext.errors import RunError
from hildanext.progress import Bar, Console
from hildanext.selftest.demo.toy_tasks import Cost, new_toy, train_toy

SEED = 0
LOOK_SECONDS = 0.2


@dataclass
class ToyTraining:
    """A toy's training of `steps` steps. process: the one that is at it and leaves weights and cost in `file`, counting
    steps in `count`; without one, `trained` does it. threads: of this process when the other has ended."""

    steps: int
    process: Any = None
    file: Path = Path()
    count: Any = None
    threads: int = 1

    def trained(self, console: Console) -> tuple[Any, Cost]:
        """The model, once it has learned, and what that cost. RunError where its process has failed."""
        loaded = new_toy(SEED)
        with console.bar("toy tasks: training", self.steps) as bar:
            if self.process is None:
                return loaded, train_toy(loaded, self.steps, SEED, bar.advance)
            self._wait(bar)
        torch.set_num_threads(self.threads)
        made = torch.load(self.file, weights_only=True)
        loaded.denoiser.load_state_dict(made["weights"])
        loaded.denoiser.eval()
        return loaded, Cost(**made["cost"])

    def _wait(self, bar: Bar) -> None:
        while self.process.is_alive():
            bar.advance(self.count.value - bar.done)
            time.sleep(LOOK_SECONDS)
        if self.process.exitcode:
            raise RunError(f"demo: the toy's training ended with code {self.process.exitcode}; its words are above")


@contextmanager
def toy_training(steps: int, file: Path, console: Console) -> Iterator[ToyTraining]:
    """A training that has begun in a process of its own where there is a second core, else one that waits to be asked
    for. This process computes with a thread less until it has been asked for; the other ends with the context at the
    latest. `file`: where that leaves what it makes."""
    if usable_cores() < 2:
        yield ToyTraining(steps)
        return
    console.say("the toy model is trained in a process of its own meanwhile")
    file.parent.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    count = spawn.Value("q", 0, lock=False)
    process = spawn.Process(target=_train, args=(steps, file, count, os.getpid()), daemon=True)
    process.start()
    own = torch.get_num_threads()
    torch.set_num_threads(max(1, own - 1))
    try:
        yield ToyTraining(steps, process, file, count, own)
    finally:
        process.terminate()
        process.join()
        torch.set_num_threads(own)


def _train(steps: int, file: Path, count: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    torch.set_num_threads(1)

    def advance(done: int, **shown: float) -> None:
        count.value += done

    loaded = new_toy(SEED)
    cost = train_toy(loaded, steps, SEED, advance)
    torch.save({"weights": loaded.denoiser.state_dict(), "cost": vars(cost)}, file)
