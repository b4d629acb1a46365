# Work on the model of an open engine that is no generation: a request that carries its own pieces, one per step.
# Entry points: Task (submitted like any request), TaskResult, Tasks (what a session keeps of them).
# Only sessions over a model of our own take tasks; the others refuse them.
"""Tasks between the steps of an engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hildanext.decoding.events import Done, Event, Failed
from hildanext.decoding.request import Metrics, Request, Result
from hildanext.errors import HildaError


class Task(Request):
    """pieces(loaded): what it finds, piece by piece; a HildaError raised there ends this task alone."""

    pieces: Callable[[Any], Iterator[list[Any]]]


@dataclass(frozen=True)
class TaskResult(Result):
    """found: everything its pieces gave, in order."""

    found: tuple[Any, ...] = ()


@dataclass
class Tasks:
    """Tasks of one session, first come first served. Their numbers are negative, a generation's are not."""

    loaded: Any
    waiting: dict[int, tuple[Iterator[list[Any]], list[Any], float]] = field(default_factory=dict)
    _last: int = 0

    def add(self, task: Task) -> int:
        """Queue a task; its number."""
        self._last -= 1
        self.waiting[self._last] = (task.pieces(self.loaded), [], time.monotonic())
        return self._last

    def step(self) -> list[Event | Failed]:
        """One piece of the first task."""
        if not self.waiting:
            return []
        number, (pieces, found, since) = next(iter(self.waiting.items()))
        try:
            piece = next(pieces, None)
        except HildaError as error:
            del self.waiting[number]
            return [Failed(number, error)]
        if piece is not None:
            found += piece
            return []
        del self.waiting[number]
        metrics = Metrics(seconds=time.monotonic() - since)
        return [Done(number, TaskResult("", (), "eos", metrics, found=tuple(found)))]
