# Executor `processes`: the cores of this machine, by Python's own process pool; needs no extra.
# Entry points: Processes.
# Workers end with this process, however it ends. tokenize encodes in one process with it, whose tokenizer uses every
# core.
"""Executor plugin processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

from hildanext.data.executor import Executor, Job, Report
from hildanext.environment import die_with_parent, usable_cores
from hildanext.progress import Console


class Processes(Executor):
    """Processes of this machine, as many as data.workers says."""

    def reports(self, jobs: Sequence[Job], place: str, workers: int, console: Console) -> Iterator[Report]:
        """As Executor.reports, each as soon as it is there."""
        workers = min(workers or usable_cores(), len(jobs))
        with ExitStack() as stack:
            yield from _results(jobs, workers, stack)


def _run(job: Job) -> Report:
    return job.run()


def _results(jobs: Sequence[Job], workers: int, stack: ExitStack) -> Iterator[Report]:
    if workers <= 1:
        return map(_run, jobs)
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=die_with_parent, initargs=(os.getpid(),))

    def end(kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
        pool.shutdown(wait=True, cancel_futures=True)

    stack.push(end)
    return pool.map(_run, jobs)
