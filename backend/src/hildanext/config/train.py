# Settings of convert-wsd, sft and merge-checkpoints: data, steps, ladder of block sizes, optimiser, checkpoints.
# Entry points: TrainConfig, LadderConfig, OptimizerConfig, ObjectiveSection.
# Counts are optimiser steps unless a description says otherwise.
"""Training sections of the configuration."""

from typing import ClassVar

from pydantic import Field

from hildanext.config.base import PluginSection, Section


class ObjectiveSection(PluginSection):
    """The training objective: {"type": plugin of core/objectives, ...fields}."""

    kind: ClassVar[str] = "objectives"


class LadderConfig(Section):
    """Warm-up, stable and decay stages of the block size (LLaDA2.0 sec. 4.1). 0 stands for the whole window L."""

    warmup: tuple[int, ...] = Field((1, 4, 32, 64, 0), description="block sizes of the warm-up, tokens; 0 is L")
    stable: tuple[int, ...] = Field((0,), description="block sizes of the stable stage, tokens; 0 is L")
    decay_to: int = Field(32, ge=1, description="last block size of the halving decay, tokens")
    shares: tuple[float, float, float] = Field((0.3, 0.4, 0.3), description="shares of steps: warm-up, stable, decay")


class OptimizerConfig(Section):
    """Optimiser and learning-rate schedule."""

    name: str = Field("adamw", description="adamw | adamw8bit | lion8bit")
    lr: float = Field(3e-4, gt=0, description="peak learning rate")


class TrainConfig(Section):
    """One training run: data, length, batches, checkpoints, evaluation."""

    data: str = Field("", description="folder of tokenised shards; empty: <paths.data>/tokenized/<data.name>")
    steps: int = Field(1000, ge=1, description="optimiser steps")
    batch: int = Field(8, ge=1, description="sequences per micro-batch and rank")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimiser step")
