# What a person sees while a command works: text and bars on stderr, never on stdout.
# Entry points: Console (say, warn, bar), Transcript (the same lines for log.txt), show_traceback, span.
# A bar is a rich bar on a terminal and a line every few seconds elsewhere; with a chart, curves of its values below.
# rich is imported when the first bar opens, so importing this file is free.
"""Human-readable output on stderr."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

LINE_EVERY_SECONDS = 5.0
Chart = Callable[[Mapping[str, Sequence[tuple[float, float]]]], str]
LINES_HELD = 1000


@dataclass
class Bar:
    """Progress of one job: advance(count, **shown values). `total` None means unknown length; `first`: what was done
    before, which the time left is not reckoned from. chart: draws the numbers shown so far, name -> (done, value)."""

    label: str
    total: float | None
    quiet: bool = False
    first: float = 0.0
    chart: Chart | None = None
    done: float = field(default=0.0, init=False)
    shown: dict[str, Any] = field(default_factory=dict)
    _started: float = 0.0
    _printed: float = 0.0
    _rich: Any = None
    _task: Any = None
    _live: Any = None
    _curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __enter__(self) -> Bar:
        self._started, self.done = time.monotonic(), self.first
        self._printed = self._started
        if not self.quiet and sys.stderr.isatty():
            self._open_rich()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        elif not self.quiet and time.monotonic() - self._started > 2.0:
            print(self._line(), file=sys.stderr, flush=True)
        if self._live is None and self.chart is not None and self._curves:
            print(self.chart(self._curves), file=sys.stderr, flush=True)

    def _open_rich(self) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._rich = Progress(*columns, TextColumn("{task.fields[shown]}"), console=RichConsole(stderr=True))
        self._task = self._rich.add_task(self.label, total=self.total, completed=int(self.first), shown="")
        self._live = Live(get_renderable=self._drawn, console=self._rich.console, refresh_per_second=4)
        self._live.start()

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        chart = [] if self.chart is None or not self._curves else [Text(self.chart(self._curves))]
        return Group(*chart, self._rich)

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        of = f"/{self.total:g} ({self.done / self.total:.0%})" if self.total else ""
        own = self.done - self.first
        left = "" if not self.total or not own else f", {span(seconds * (self.total - self.done) / own)} left"
        values = "".join(f", {name} {_short(value)}" for name, value in self.shown.items())
        return f"{self.label}: {self.done:g}{of}{values}, {span(seconds)}{left}"

    def advance(self, count: float = 1, **shown: Any) -> None:
        """Move on by `count` and show the given values beside the bar."""
        self.done += count
        self.shown.update(shown)
        if self.chart is not None:
            for name, value in shown.items():
                if isinstance(value, float):
                    self._curves.setdefault(name, []).append((self.done, value))
        if self._rich is not None:
            text = " ".join(f"{name} {_short(value)}" for name, value in self.shown.items())
            self._rich.update(self._task, completed=self.done, shown=text)
        elif not self.quiet and time.monotonic() - self._printed > LINE_EVERY_SECONDS:
            self._printed = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)


def span(seconds: float) -> str:
    """A duration as a person says it: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass
class Transcript:
    """What a console said: held until a run directory takes it, then written there line by line."""

    held: list[str] = field(default_factory=list)
    write: Callable[[str], None] | None = None

    def add(self, text: str) -> None:
        """One line more. A log that cannot be written ends no command: the line is on the terminal."""
        if self.write is None:
            self.held = [*self.held, text][-LINES_HELD:]
            return
        with suppress(OSError):
            self.write(text)

    def keep(self, write: Callable[[str], None]) -> None:
        """From now on lines go to `write`; those held go first."""
        held, self.held, self.write = self.held, [], write
        for text in held:
            self.add(text)


@dataclass(frozen=True)
class Console:
    """Text for a person: say and warn print a line on stderr; bar opens a progress bar. quiet: only warnings. chart: of
    bars that show numbers. What is said, also what quiet holds back, is in the transcript."""

    quiet: bool = False
    chart: Chart | None = field(default=None, compare=False)
    transcript: Transcript = field(default_factory=Transcript, compare=False, repr=False)

    def say(self, text: str) -> None:
        """One line of information."""
        self.transcript.add(text)
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """One line that must not be missed: a fallback, a refusal, a reason."""
        self.transcript.add(f"warning: {text}")
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def bar(self, label: str, total: float | None = None, first: float = 0.0) -> Bar:
        """A progress bar, used as a context manager; `first` of the total were done before."""
        return Bar(label, total, self.quiet, first, self.chart)

    def table(self, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ()) -> None:
        """Rows of text in aligned columns."""
        everything = [header, *rows] if header else rows
        widths = [max(len(row[i]) for row in everything) for i in range(len(everything[0]))] if everything else []
        for row in everything:
            self.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show_traceback(error: BaseException) -> None:
    """Print a traceback on stderr; a log that cannot be written (a full disk, a closed pipe) ends nothing."""
    with suppress(OSError, ValueError):
        traceback.print_exception(error)
