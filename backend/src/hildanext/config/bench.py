# Settings of bench, read by that command only: what is timed, and the workload of each part.
# Entry points: BenchConfig, DataBenchConfig, TrainBenchConfig, DecodeBenchConfig, ForwardBenchConfig.
# Sizes are in tokens, MB or counts as each description says.
"""Bench section of the configuration."""

from typing import Literal

from pydantic import Field

from hildanext.config.base import Section


class DataBenchConfig(Section):
    """bench data: sizes of the generated corpora."""

    speed_megabytes: float = Field(16.0, gt=0, description="corpus of the throughput comparison, MB of text")
    repeats: int = Field(3, ge=1, description="times each side of the throughput comparison runs; the fastest counts")
    memory_megabytes: tuple[float, ...] = Field(
        (100.0, 1000.0), description="corpora of the memory comparison, MB of text; empty: none"
    )


class TrainBenchConfig(Section):
    """bench train: the shape of the model and what is timed. Defaults: Qwen3-0.6B with 4 of its 28 layers."""

    length: int = Field(512, ge=8, description="window L, tokens; one row")
    vocabulary: int = Field(151_936, ge=8, description="rows of the embedding")
    layers: int = Field(4, ge=1, description="decoder layers")
    hidden: int = Field(1024, ge=8, description="hidden width")
    heads: int = Field(16, ge=1, description="query heads; key heads are half as many")
    head_dim: int = Field(128, ge=2, description="width of a head")
    ffn: int = Field(3072, ge=8, description="width of the feed-forward layer")
    block: int = Field(32, ge=1, description="block size of the comparison with the plain form, tokens")
    blocks: tuple[int, ...] = Field((1, 4, 32, 128, 0), description="block sizes whose cost is compared; 0 is L (MDLM)")
    repeats: int = Field(2, ge=1, description="times everything is timed, in turns; the fastest counts")
    steps: int = Field(24, ge=0, description="steps over which memory is followed, before anything is timed; 0: none")
    clock: Literal["wall", "cpu"] = Field(
        "wall", description="seconds of the clock, or of the processor on busy machines"
    )


class DecodeBenchConfig(Section):
    """bench decode: the workload and what is compared."""

    prompt_tokens: int = Field(128, ge=1, description="prompt length, tokens")
    new_tokens: int = Field(128, ge=1, description="tokens generated per request")
    context_tokens: int = Field(512, ge=1, description="cached tokens in the timing of single forwards")
    blocks: tuple[int, ...] = Field((8, 16, 32), description="block sizes, tokens")
    requests: int = Field(8, ge=1, description="requests decoded together in the batched runs, a count")
    precisions: tuple[Literal["float32", "bfloat16", "int8"], ...] = Field(
        ("float32", "bfloat16", "int8"), description="weights and compute compared; int8: dynamic quantisation"
    )
    prompts: tuple[str, ...] = Field(
        (),
        description="prompts on which the modes are compared; empty: openings of TinyStories, or of the story world "
        "where the vocabulary suits those better",
    )
    tokens_per_forward: float = Field(4.0, gt=0.0, description="TPF of the scripted policy for untrained weights")
    threads: tuple[int, ...] = Field((1,), description="torch thread counts whose single forwards are timed as well")
    clock: Literal["wall", "cpu"] = Field(
        "wall", description="what seconds are: wall clock, or this process's CPU seconds (a shared machine, one thread)"
    )
    repeats: int = Field(3, ge=1, description="interleaved repeats of each single forward; the fastest counts")


class ForwardBenchConfig(Section):
    """bench forward: what is timed, and the texts that are decoded afterwards."""

    runners: tuple[Literal["eager float32", "eager bfloat16", "onnx float32", "onnx int8", "onnx int4"], ...] = Field(
        ("eager float32", "eager bfloat16", "onnx float32", "onnx int8", "onnx int4"),
        min_length=1,
        description="what runs a forward; what agrees is counted against the first",
    )
    positions: tuple[int, ...] = Field((1, 8, 16, 32), min_length=1, description="positions q of a forward, counts")
    contexts: tuple[int, ...] = Field((128, 512), min_length=1, description="cached tokens before them, counts")
    repeats: int = Field(12, ge=1, description="turns of every forward; the median counts")
    clock: Literal["wall", "cpu"] = Field(
        "wall", description="wall clock, or this process's CPU seconds (a shared machine, one thread)"
    )
    new_tokens: int = Field(64, ge=0, description="tokens decoded per prompt by every runner; 0: none")
    prompts: tuple[str, ...] = Field((), description="prompts decoded one by one; empty: those of bench decode")


class BenchConfig(Section):
    """bench: which part, and the settings of each."""

    part: str = Field("", description="what is timed: data, objective, train, decode or forward")
    data: DataBenchConfig = DataBenchConfig()
    train: TrainBenchConfig = TrainBenchConfig()
    decode: DecodeBenchConfig = DecodeBenchConfig()
    forward: ForwardBenchConfig = ForwardBenchConfig()
