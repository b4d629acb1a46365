# What the parts of the demo share: sizes, the stage they run on with its models, and the result each hands back.
# Entry points: Sizes, Stage (model, context), Part, SEED.
# A part gives numbers (data), a section for the page, and at most a few facts for its top.
"""Records of the demo."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.measure.generation import Generator
from hildanext.measure.task import EvalContext
from hildanext.models.load import Loaded, load_model
from hildanext.progress import Console
from hildanext.report.page import Section
from hildanext.run_dir import RunDir
from hildanext.selftest.demo.toy_training import ToyTraining

SEED = 7_000_003


@dataclass(frozen=True)
class Sizes:
    """How much each part does: optimiser steps, items, stories, Monte-Carlo samples, timing rounds,
    tokens of a story, thresholds, documents to convert on, seconds to look for the fastest setting."""

    toy_steps: int = 900
    toy_items: int = 100
    steps: int = 120
    stories: int = 40
    nll_stories: int = 16
    samples: int = 4
    rounds: int = 5
    new_tokens: int = 224
    taus: tuple[float, ...] = (0.5, 0.55, 0.6, 0.7, 0.9)
    documents: int = 2500
    tuning: float = 20.0


@dataclass
class Stage:
    """Configuration, console, run directory and sizes of a demo, the toy's training, and what earlier parts made."""

    config: Config
    console: Console
    run: RunDir
    sizes: Sizes
    toy: ToyTraining
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Folder for data and trained models."""
        return self.run.path / "work"

    def model(self, name: str) -> Loaded:
        """`parent` (bundled AR), `child` (bundled diffusion) or `fresh` (the parent converted by this run), kept."""
        paths = {"parent": "tiny-parent", "child": "tiny", "fresh": self.made.get("fresh", "")}
        found: dict[str, Loaded] = self.made.setdefault("loaded", {})
        if name not in found:
            found[name] = load_model(ModelConfig(path=paths[name]))
        return found[name]

    def context(self, model: Loaded, generator: Generator) -> EvalContext:
        """A quiet context for a task, which keeps one sample."""
        samples = self.config.eval.model_copy(update={"samples": 1})
        return EvalContext(model, self.config.model_copy(update={"eval": samples}), Console(quiet=True), generator)


@dataclass(frozen=True)
class Part:
    """The result of one part. facts: (number, what it is)."""

    section: Section
    data: dict[str, Any] = field(default_factory=dict)
    facts: tuple[tuple[str, str], ...] = ()
    name: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def skipped(cls, name: str, title: str, why: str) -> Part:
        """A part that did not run."""
        return cls(Section(title, "", skipped=why), {"skipped": why}, name=name)

    def timed(self, name: str, seconds: float, cpu_seconds: float) -> Part:
        """The part with its name, its duration and the CPU seconds this process spent on it."""
        return replace(self, name=name, seconds=seconds, cpu_seconds=cpu_seconds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for report.json."""
        times = {"seconds": round(self.seconds, 1), "cpu_seconds": round(self.cpu_seconds, 1)}
        return {**times, "section": self.section.as_dict(), **self.data}
