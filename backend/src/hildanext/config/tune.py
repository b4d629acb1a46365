# Settings of tune, read by that command only: what is tried, for how long, and how much the texts may suffer.
# Entry points: TuneConfig.
# Places are dotted values of this configuration; shares are in [0, 1], seconds are of the clock.
"""Tuning section of the configuration."""

from typing import Any, Literal

from pydantic import Field

from hildanext.config.base import Section
from hildanext.config.decode import Share


class TuneConfig(Section):
    """tune: the search for the fastest setting whose texts are as good."""

    axes: dict[str, tuple[Any, ...]] = Field(
        {},
        description="values to try by place, as {'decode.block': [8, 16]}, in place of what is tried there by itself",
    )
    parent: str = Field(
        "", description="AR parent that judges; empty: the base of adapters, the bundled parent of the bundled child"
    )
    prompts: tuple[str, ...] = Field((), description="prompts; empty: those of the contest of bench decode")
    clock: Literal["wall", "cpu"] = Field(
        "wall", description="what speeds are over: wall clock, or this process's CPU seconds (a shared machine)"
    )
    seconds: float = Field(
        90.0,
        gt=0.0,
        description="time for trying settings, without what opening engines, writing their exports, the texts of the"
        " reference and the last comparison take",
    )
    texts: int = Field(3, ge=1, description="prompts of the last comparison at most, a count")
    text_tokens: int = Field(48, ge=8, description="tokens of a text at most")
    first_tokens: int = Field(24, ge=4, description="tokens of the one text by which most settings are cut")
    finalists: int = Field(2, ge=1, description="settings compared in turns at the end, a count")
    repeats: int = Field(2, ge=1, description="turns of the last comparison; the median counts")
    tolerance: Share = Field(
        0.1,
        description="nats per token under the parent may exceed the reference's by this share; without a parent, the"
        " share of tokens that may differ from the reference's texts",
    )
    write: bool = Field(False, description="write the winner into the model folder's hildanext.json")
