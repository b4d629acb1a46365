# What `compare --config grid.json` and `sweep` measure: cells of training, their common budget and their evaluation.
# Entry points: GridConfig, StageConfig, SweepConfig.
# A cell is a list of stages, each the configuration of the file with `set` over it; adding a cell is adding an entry.
"""Grid sections of the configuration."""

from typing import Any, Literal

from pydantic import Field, model_validator

from hildanext.config.base import Section
from hildanext.config.decode import Share
from hildanext.config.eval import TaskSection

TRAINING = ("convert-wsd", "sft", "on-policy", "latent")
Command = Literal["convert-wsd", "sft", "on-policy", "latent", "trajectories", "anchors"]


class StageConfig(Section):
    """One command of a cell, on the model of the stage before it."""

    command: Command = Field("convert-wsd", description="what is run")
    share: float = Field(1.0, gt=0, description="its part of the budget among the stages that train")
    set: dict[str, Any] = Field(
        {}, description="values over those of the file; {cell} in a text is the cell's folder, {parent} the first model"
    )


class GridConfig(Section):
    """compare: training configurations at one budget, with the same seeds and the same evaluation."""

    cells: dict[str, tuple[StageConfig, ...]] = Field({}, description="stages by name of the cell")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="every cell is run with each")
    seconds: float = Field(60.0, ge=0, description="processor seconds of a cell, recorded orders included; 0: tokens")
    tokens: int = Field(0, ge=0, description="tokens of a cell in place of seconds, where seconds is 0")
    probe: int = Field(8, ge=3, description="steps that say what one takes, before a budget of seconds")
    rows: int = Field(24, ge=2, description="evaluation rows, a count")
    samples: int = Field(4, ge=2, description="noise draws of the bound, a count")
    taus: tuple[Share, ...] = Field(
        (0.3, 0.5, 0.7, 0.8, 0.9, 0.97), min_length=1, description="thresholds of filling, the points of the curve"
    )
    tasks: tuple[TaskSection, ...] = Field((), description="tasks of eval that every cell is also given")

    @model_validator(mode="after")
    def _has_a_budget(self) -> "GridConfig":
        if self.cells and not self.seconds and not self.tokens:
            raise ValueError("seconds and tokens are both 0; give one of them")
        idle = [name for name, stages in self.cells.items() if not any(one.command in TRAINING for one in stages)]
        if idle:
            raise ValueError(f"cells: {idle[0]!r} has no stage that trains; give one of {', '.join(TRAINING)}")
        return self


class SweepConfig(Section):
    """sweep: quality and throughput of one model against the steps of its decoding."""

    steps: tuple[int, ...] = Field((8, 16, 32, 64, 128), min_length=1, description="steps of a text, counts")
    prompts: int = Field(8, ge=1, description="held-out texts whose beginnings are gone on with, a count")
    new_tokens: int = Field(128, ge=1, description="tokens of a text")
    parent: str = Field("", description="AR parent that judges the texts; empty: the one the model folder names")
