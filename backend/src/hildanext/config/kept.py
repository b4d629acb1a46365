# What is written by reading rows: the parent's states (anchors), the order of decoding (trajectories), key scores.
# Entry points: AnchorsConfig, TrajectoriesConfig, KeyScoresConfig.
# All read the shards of the sections train and tokenize; the folders are named in the objective that reads them.
"""Sections of the commands anchors, trajectories and key-scores."""

from typing import Literal

from pydantic import Field

from hildanext.config.base import Section


class AnchorsConfig(Section):
    """anchors: hidden states of the AR parent over the rows of train.split."""

    folder: str = Field("", description="where the states go; empty: anchors/ beside the shards")
    layers: tuple[int, ...] = Field((), description="layers kept, counted from 1; empty: those in `depth`")
    depth: tuple[float, float] = Field((0.0, 1.0), description="share of the depth, from above the first to the second")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="what the states are rounded to")
    rows: int = Field(0, ge=0, description="rows written, from the first on, a count; 0: all")
    at_once: int = Field(8, ge=1, description="rows of a forward")


class TrajectoriesConfig(Section):
    """trajectories: in which order the model fills the masks of its training texts."""

    folder: str = Field("", description="where the orders go; empty: trajectories/ beside the shards")
    free: bool = Field(False, description="the model's own answers to the rows' prompts, kept as rows of their own")
    block: int = Field(0, ge=0, description="block size, tokens; 0: the model's")
    rows: int = Field(0, ge=0, description="rows read, from the first on, a count; 0: all")
    at_once: int = Field(8, ge=1, description="rows of a forward")


class KeyScoresConfig(Section):
    """key-scores: how much attention each key will ever get, fitted per layer on rows of train.split."""

    file: str = Field("", description="where the scores go; empty: key_scores.st in the model folder")
    block: int = Field(0, ge=0, description="block size, tokens; 0: the model's")
    rows: int = Field(64, ge=2, description="rows read at most, from the first on, a count; every eighth is held out")
    ridge: float = Field(1e-3, ge=0, description="penalty on squared weights, per token")
