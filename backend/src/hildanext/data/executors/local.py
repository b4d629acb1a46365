# Executor `local`: datatrove's local executor, one process for each task at a time on this machine.
# Entry points: Local.
# datatrove's own pool waits for ever for a killed worker, and its manager process outlives one; so its tasks are here
# run by a pool that says so, and those that were lost are run again.
"""Executor plugin local."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

from hildanext.data.executor import Clustered, require_datatrove
from hildanext.environment import die_with_parent, usable_cores


class Local(Clustered):
    """datatrove's pipelines in processes of this machine, as many as data.workers says."""

    def launch(self, pipeline: Sequence[Any], tasks: int, workers: int, logs: str) -> None:
        """As Clustered.launch."""
        require_datatrove()
        spawn, count = multiprocessing.get_context("spawn"), min(workers or usable_cores(), tasks)
        with ProcessPoolExecutor(count, spawn, initializer=die_with_parent, initargs=(os.getpid(),)) as pool:
            waiting = [pool.submit(_task, list(pipeline), tasks, rank, logs) for rank in range(tasks)]
            for one in waiting:
                with suppress(BrokenProcessPool):  # a lost worker: run_all runs its task again
                    one.result()


def _task(pipeline: list[Any], tasks: int, rank: int, logs: str) -> None:
    from datatrove.executor import LocalPipelineExecutor

    executor = LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=logs)
    executor._run_for_rank(rank, local_rank=1)
