# Settings of answer: prompts in, chat rows with a parent's answers out. How it answers stands in decode.
# Entry points: AnswerConfig.
# decode.temperature, top_k, top_p, max_new_tokens, seed, thinking and requests (texts at once) are read.
"""Answer section of the configuration."""

from typing import Literal

from pydantic import Field

from hildanext.config.base import Section


class AnswerConfig(Section):
    """answer: which prompts, how many answers to each, what becomes of those that did not end, and where they go."""

    path: str = Field(
        "",
        description="file of prompts: rows with prompt, messages, instruction or question, or a text with one a line",
    )
    field: str = Field("", description="field of a row that is the prompt; empty: found row by row")
    limit: int = Field(0, ge=0, description="prompts at most, the first ones; 0: all")
    samples: int = Field(1, ge=1, le=10_000, description="answers to each prompt; more than one needs a temperature")
    greedy: bool = Field(False, description="the first answer to each prompt is the greedy one, the others are drawn")
    unfinished: Literal["drop", "keep"] = Field(
        "drop", description="answers that did not end by themselves within max_new_tokens or the window"
    )
    output: str = Field("", description="file to write, JSON lines; empty: <paths.data>/raw/answers/<model>.jsonl")
    write: int = Field(0, ge=0, le=1_000_000, description="write this many prompts of our own to `output` instead")
    held_out: bool = Field(False, description="prompts that are written come from the part kept for evaluation")
