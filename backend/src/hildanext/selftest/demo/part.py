# What the parts of the demo share: sizes, the stage they run on, and the result each hands back.
# Entry points: Sizes, Stage, Part.
# A part gives numbers (data), a section for the page, and at most a few facts for its top.
"""Records of the demo."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.progress import Console
from hildanext.report.page import Section
from hildanext.run_dir import RunDir


@dataclass(frozen=True)
class Sizes:
    """How much each part does: optimiser steps, items, stories, Monte-Carlo samples, timing rounds,
    tokens of a story, thresholds."""

    toy_steps: int = 900
    toy_items: int = 100
    steps: int = 120
    stories: int = 40
    nll_stories: int = 16
    samples: int = 4
    rounds: int = 5
    new_tokens: int = 224
    taus: tuple[float, ...] = (0.5, 0.55, 0.6, 0.7, 0.9)


@dataclass
class Stage:
    """Configuration, console, run directory and sizes of a demo, and what earlier parts made."""

    config: Config
    console: Console
    run: RunDir
    sizes: Sizes
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Folder for data and trained models."""
        return self.run.path / "work"


@dataclass(frozen=True)
class Part:
    """The result of one part. facts: (number, what it is)."""

    section: Section
    data: dict[str, Any] = field(default_factory=dict)
    facts: tuple[tuple[str, str], ...] = ()
    name: str = ""
    seconds: float = 0.0

    @classmethod
    def skipped(cls, name: str, title: str, why: str) -> Part:
        """A part that did not run."""
        return cls(Section(title, "", skipped=why), {"skipped": why}, name=name)

    def timed(self, name: str, seconds: float) -> Part:
        """The part with its name and duration."""
        return replace(self, name=name, seconds=seconds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return {"seconds": round(self.seconds, 1), "section": self.section.as_dict(), **self.data}
