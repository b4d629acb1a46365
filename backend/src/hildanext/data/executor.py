# What every executor plugin is: where the jobs of prepare-data and tokenize are done, and how their reports come back.
# Entry points: Job, Report, Executor, Clustered, run_all, require_datatrove, quiet_datatrove.
# A clustered executor hands datatrove's pipelines to other processes or machines. A job writes into a folder of its
# worker's own; its files are put where all reach them, the report last. So a killed worker leaves nothing half, and
# what has no report is done again. Which job lies in which task changes nothing of what it writes.
"""Base of the executor plugins."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol

from pydantic import Field

from hildanext.data.storage import is_remote, joined, names_in, put, read, removed, write
from hildanext.errors import DataError, HildaError, RunError
from hildanext.progress import Console
from hildanext.registry import Plugin

ATTEMPTS = 3
REFUSED = ".refused"
Report = dict[str, Any]


class Job(Protocol):
    """A part of the work that depends on nothing but itself: run() writes stem + each of `parts`, then stem.json."""

    parts: ClassVar[tuple[str, ...]]

    @property
    def stem(self) -> Path:
        """Its files without their endings."""

    def run(self) -> Report:
        """Do it, or read the report of one that was done. HildaError for what the user can cause."""


class Executor(Plugin):
    """Base of the executors: reports(jobs) does them all."""

    def reports(self, jobs: Sequence[Job], place: str, workers: int, console: Console) -> Iterator[Report]:
        """The reports in the order of the jobs, whose files are at their stems then. place: folder of these stems that
        every machine reaches; workers: processes at a time, 0: as many as there are cores."""
        raise TypeError(f"{type(self).__name__} does not define reports()")


class Clustered(Executor):
    """Base of the executors of datatrove (extra `cluster`)."""

    tasks: int = Field(0, ge=0, description="tasks the jobs are dealt to; 0: one a job. Changes no row")
    documents: int = Field(8192, ge=1, description="tokenize: documents encoded by one job")

    def launch(self, pipeline: Sequence[Any], tasks: int, workers: int, logs: str) -> None:
        """Run the pipeline's tasks that `logs` does not record as done and return when none runs any more, also where
        workers were lost; workers at a time, 0: as this executor likes."""
        raise TypeError(f"{type(self).__name__} does not define launch()")

    def reports(self, jobs: Sequence[Job], place: str, workers: int, console: Console) -> Iterator[Report]:
        """As Executor.reports."""
        place = place if is_remote(place) else str(Path(place).resolve())
        shared = [_Shared(job, joined(place, job.stem.name)) for job in jobs]
        there = names_in(place)
        left = tuple(one for one in shared if f"{one.job.stem.name}.json" not in there)
        if left:
            tasks = min(self.tasks or len(left), len(left))
            logs = joined(place, f"logs-{_digest([one.name for one in left], tasks)}")
            run_all(self, [_Dealt(left, str(Path.cwd()))], tasks, workers, logs, console)
        for one in left:
            if one.name + REFUSED in names_in(place):
                told = read(one.place + REFUSED).decode()
                removed(one.place + REFUSED)
                removed(logs)
                raise DataError(told)
        yield from (one.collected() for one in shared)


def require_datatrove(*others: str) -> None:
    """RunError where datatrove, or what it needs beside it, is not installed."""
    lacks = [name for name in ("datatrove", *others) if find_spec(name) is None]
    if lacks:
        raise RunError(f"data.executor: needs {' and '.join(lacks)}; pip install 'hildanext[cluster]'")


def quiet_datatrove() -> None:
    """What datatrove logs in this process is not shown; the log files of its tasks have theirs."""
    from loguru import logger

    logger.disable("datatrove")


def run_all(
    executor: Clustered, pipeline: Sequence[Any], tasks: int, workers: int, logs: str, console: Console
) -> None:
    """Run every task of a datatrove pipeline, and again those whose worker was lost. RunError where some are still not
    done after three tries; what the others did stays and is found by the next run."""
    for attempt in range(ATTEMPTS):
        executor.launch(pipeline, tasks, workers, logs)
        left = tasks - len(names_in(joined(logs, "completions")))
        if not left:
            return
        console.warn(
            f"{left} of {tasks} tasks were not finished ({logs}/logs says why); try {attempt + 1} of {ATTEMPTS}"
        )
    raise RunError(
        f"data.executor: {left} of {tasks} tasks failed {ATTEMPTS} times; {logs}/logs says why, what is done stays and"
        " the same command goes on"
    )


def _digest(names: Sequence[str], tasks: int) -> str:
    return hashlib.sha256(json.dumps([list(names), tasks]).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class _Shared:
    job: Any
    place: str

    @property
    def name(self) -> str:
        return str(self.job.stem.name)

    def run(self) -> None:
        with TemporaryDirectory(prefix="hildanext-") as own:
            stem = Path(own) / "job"
            try:
                replace(self.job, stem=stem).run()
            except HildaError as error:  # told by the process that started the tasks
                write(self.place + REFUSED, str(error).encode())
                return
            for ending in (*self.job.parts, ".json"):
                put(stem.with_suffix(ending), self.place + ending)

    def collected(self) -> Report:
        if is_remote(self.place):
            for ending in self.job.parts:
                self.job.stem.with_suffix(ending).write_bytes(read(self.place + ending))
        report: Report = json.loads(read(f"{self.place}.json"))
        return report


@dataclass(frozen=True)
class _Dealt:
    jobs: tuple[_Shared, ...]
    begun_in: str

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        if Path(self.begun_in).is_dir():  # paths of sources may be relative
            os.chdir(self.begun_in)
        own = self.jobs[rank::world_size]
        done = names_in(own[0].place.rpartition("/")[0])
        for job in own:
            if f"{job.name}.json" not in done and job.name + REFUSED not in done:
                job.run()
        return iter(())
