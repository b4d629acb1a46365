# The open sessions of a search, as few at a time as it compares, and readers with a number of threads of their own.
# Entry points: Sessions, Threaded.
# Opening loads a model and may write an export: what it takes is not the search's time.
"""Sessions of tune."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch

from hildanext.bench.decoding.asks import Ask
from hildanext.bench.decoding.readers import Reader, Reading
from hildanext.bench.tuning.space import THREADS, Trial
from hildanext.config import Config
from hildanext.config.places import with_values
from hildanext.engines.protocol import EnginePlugin
from hildanext.progress import Console
from hildanext.registry import build


@dataclass
class Sessions:
    """Open sessions by group, the `most` used last. refused: why a group did not open, by group; seconds: spent on
    opening (an engine may write its export then), which the search does not count."""

    config: Config
    most: int
    held: OrderedDict[str, Any] = field(default_factory=OrderedDict)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def of(self, trial: Trial) -> Any:
        """The session of a setting, opened where it is not, with its threads; None where it does not open."""
        if trial.group in self.refused:
            return None
        torch.set_num_threads(int(trial.opened.get(THREADS) or torch.get_num_threads()))
        if trial.group not in self.held:
            while len(self.held) >= self.most:
                self.held.popitem(last=False)[1].close()
            plugin: EnginePlugin = build("engines", trial.engine, "tune")
            started = time.monotonic()
            opening = plugin.open(with_values(self.config, trial.opened), Console(quiet=True))
            self.seconds += time.monotonic() - started
            if not opening.capability.ok:
                self.refused[trial.group] = "; ".join(opening.capability.reasons)
                return None
            self.held[trial.group] = opening.session
        self.held.move_to_end(trial.group)
        return self.held[trial.group]

    def close(self) -> None:
        """Close all."""
        while self.held:
            self.held.popitem()[1].close()


@dataclass(frozen=True)
class Threaded:
    """A reader with a number of threads of its own."""

    reader: Reader
    threads: int

    def read(self, ask: Ask, new: int) -> Reading:
        """What the reader reads."""
        torch.set_num_threads(self.threads)
        return self.reader.read(ask, new)
