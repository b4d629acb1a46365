# Counters of the server in Prometheus' text format.
# Entry points: ServerMetrics (request, finished, cancelled, broken, unloaded, text).
# Written by the engine thread and the event loop, so every change holds the lock.
"""Server metrics."""

from __future__ import annotations

import resource
import sys
import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hildanext.decoding.request import Metrics, Result

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
RECENT = 0.1


@dataclass
class Histogram:
    """Cumulative buckets of seconds with their sum and count."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, text: str) -> list[str]:
        """The metric in Prometheus' text format."""
        seen, rows = 0, [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        for bound, count in zip((*BOUNDS, "+Inf"), self.counts, strict=True):
            seen += count
            rows.append(f'{name}_bucket{{le="{bound}"}} {seen}')
        return [*rows, f"{name}_sum {self.total:.6f}", f"{name}_count {seen}"]


class ServerMetrics:
    """What the server has done since it started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._sums: Counter[str] = Counter()
        self._latency, self._first = Histogram(), Histogram()
        self._mean_seconds = 1.0
        self._last = Metrics()

    def request(self, method: str, route: str, status: int) -> None:
        """One answered HTTP request; route is the template, never the raw path."""
        with self._lock:
            self._requests[method, route, status] += 1

    def finished(self, result: Result, seconds: float) -> None:
        """One finished generation; seconds from its arrival."""
        values = result.metrics
        with self._lock:
            self._sums["generations"] += 1
            self._sums["prompt_tokens"] += values.prompt_tokens
            self._sums["cached_tokens"] += values.cached_tokens or 0
            self._sums["tokens"] += values.tokens
            self._sums["forwards"] += values.forwards
            self._latency.add(seconds)
            self._first.add(values.first_block_seconds)
            self._mean_seconds += RECENT * (seconds - self._mean_seconds)
            self._last = values

    def cancelled(self) -> None:
        """One generation ended because its reader went away or ran out of time."""
        with self._lock:
            self._sums["cancelled"] += 1

    def broken(self) -> None:
        """One engine step that failed."""
        with self._lock:
            self._sums["step_failures"] += 1

    def unloaded(self) -> None:
        """One model that was taken out of memory."""
        with self._lock:
            self._sums["model_unloads"] += 1

    def mean_seconds(self) -> float:
        """Recent mean time of a generation, seconds."""
        return self._mean_seconds

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """The whole page; gauges: name -> (help, value) read at this moment."""
        with self._lock:
            lines = self._request_lines() + self._sum_lines()
            lines += self._latency.lines("hildanext_generation_seconds", "Time from arrival to the last token.")
            lines += self._first.lines("hildanext_first_block_seconds", "Time from admission to the first block.")
        now = gauges | {
            "tokens_per_forward": ("Tokens per forward of the last generation.", self._last.tokens_per_forward),
            "tokens_per_forward_unfused": (
                "The same with every commit a forward of its own; 0: the engine does not tell.",
                self._last.tokens_per_forward_unfused or 0.0,
            ),
            "positions_per_forward": (
                "Positions of generated blocks per forward of the last generation; 0: the engine does not tell.",
                self._last.positions_per_forward or 0.0,
            ),
            "prefix_hit_rate": (
                "Share of prompt tokens so far that earlier requests had computed; 0: none, or it is not told.",
                self._sums["cached_tokens"] / max(1, self._sums["prompt_tokens"]),
            ),
            "memory_bytes": ("Resident memory now, bytes.", resident_bytes()),
            "memory_peak_bytes": ("Resident memory at most, bytes.", float(peak_bytes())),
        }
        for name, (help_text, value) in now.items():
            lines += _single(f"hildanext_{name}", help_text, "gauge", value)
        return "\n".join(lines) + "\n"

    def _request_lines(self) -> list[str]:
        name = "hildanext_http_requests_total"
        rows = [f"# HELP {name} Answered HTTP requests.", f"# TYPE {name} counter"]
        for (method, route, status), count in sorted(self._requests.items()):
            rows.append(f'{name}{{method="{method}",route="{route}",status="{status}"}} {count}')
        return rows

    def _sum_lines(self) -> list[str]:
        texts = {
            "generations": "Finished generations.", "prompt_tokens": "Prompt tokens of finished generations.",
            "cached_tokens": "Prompt tokens of finished generations that were taken from earlier requests.",
            "tokens": "Generated tokens.", "forwards": "Forwards of finished generations.",
            "cancelled": "Generations ended early.", "step_failures": "Engine steps that failed.",
            "model_unloads": "Models taken out of memory, to make room or to be loaded anew.",
        }  # fmt: skip
        rows: list[str] = []
        for name, text in texts.items():
            rows += _single(f"hildanext_{name}_total", text, "counter", self._sums[name])
        return rows


def _single(name: str, text: str, kind: str, value: Any) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value}"]


def peak_bytes() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> float:
    """Resident size of this process, bytes; the peak where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return float(int(file.read().split()[1]) * resource.getpagesize())
    except OSError:
        return float(peak_bytes())
