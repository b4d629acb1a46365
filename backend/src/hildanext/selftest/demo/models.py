# The models of the demo, loaded once, and the context tasks run in.
# Entry points: loaded, context, SEED.
# Names: parent (bundled AR), child (bundled diffusion), fresh (the parent converted by this run).
"""Models of the demo."""

from __future__ import annotations

from typing import Any

from hildanext.config.model import ModelConfig
from hildanext.measure.generation import Generator
from hildanext.measure.task import EvalContext
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.selftest.demo.part import Stage

SEED = 7_000_003


def loaded(stage: Stage, name: str) -> Any:
    """The model of a name, kept for the parts that follow."""
    paths = {"parent": "tiny-parent", "child": "tiny", "fresh": stage.made.get("fresh", "")}
    if name not in stage.made.setdefault("loaded", {}):
        stage.made["loaded"][name] = load_model(ModelConfig(path=paths[name]))
    return stage.made["loaded"][name]


def context(stage: Stage, model: Any, generator: Generator) -> EvalContext:
    """A quiet context that keeps one sample."""
    samples = stage.config.eval.model_copy(update={"samples": 1})
    return EvalContext(model, stage.config.model_copy(update={"eval": samples}), Console(quiet=True), generator)
