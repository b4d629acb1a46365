# Settings of bench, read by that command only: what is timed, and the workload of each part.
# Entry points: BenchConfig, DataBenchConfig, TrainBenchConfig, DecodeBenchConfig, PrefixBenchConfig,
# GpuBenchConfig, ForwardBenchConfig.
# Sizes are in tokens, MB or counts as each description says.
"""Bench section of the configuration."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

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
    learned: float = Field(
        0.6, gt=0, le=1, description="share of a row that is learned, its end, where the cost of an answer is timed"
    )
    repeats: int = Field(2, ge=1, description="times everything is timed, in turns; the fastest counts")
    steps: int = Field(24, ge=0, description="steps over which memory is followed, before anything is timed; 0: none")
    clock: Literal["wall", "cpu"] = Field(
        "wall", description="seconds of the clock, or of the processor on busy machines"
    )


class DecodeBenchConfig(Section):
    """bench decode: the workload and what is compared."""

    measures: tuple[Literal["forwards", "modes", "contest"], ...] = Field(
        ("forwards", "modes", "contest"),
        min_length=1,
        description="forwards: single forwards and whole generations by precision; modes: the modes beside each other; "
        "contest: the model beside its AR parent read left to right, by us, by transformers, by llama.cpp",
    )
    prompt_tokens: int = Field(128, ge=1, description="prompt length, tokens")
    new_tokens: int = Field(128, ge=1, description="tokens generated per request")
    context_tokens: int = Field(512, ge=1, description="cached tokens in the timing of single forwards")
    blocks: tuple[int, ...] = Field((8, 16, 32), description="block sizes, tokens")
    windows: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 4), description="blocks open at once in the comparison of the modes on trained weights, counts: 1, 2, 4"
    )
    requests: int = Field(8, ge=1, description="requests decoded together in the batched runs, a count")
    precisions: tuple[Literal["float32", "bfloat16", "int8"], ...] = Field(
        ("float32", "bfloat16", "int8"), description="weights and compute compared; int8: dynamic quantisation"
    )
    prompts: tuple[str, ...] = Field(
        (),
        description="prompts on which the modes are compared; empty: openings of TinyStories, or of the story world "
        "where the vocabulary suits those better",
    )
    parent: str = Field(
        "", description="contest: AR parent; empty: the base of adapters, the bundled parent of the bundled child"
    )
    gguf: tuple[str, ...] = Field((), description="contest: GGUF files of the parent, which llama.cpp reads")
    onnx: tuple[Literal["float32", "int8", "int4"], ...] = Field(
        (), description="contest: weights of ONNX exports of the model that take part, written where they are not there"
    )
    llamacpp: tuple[Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"], ...] = Field(
        (), description="contest: matrices of GGUF exports of the model that it decodes under llama.cpp with, written "
        "where they are not there",
    )  # fmt: skip
    scripted: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="contest: tokens per forward of scripts that decode in each of `blocks` in place of the modes, "
        "behind prompts of prompt_tokens; speed alone, for weights that nothing trained",
    )  # fmt: skip
    node: str = Field(".", description="contest: folder in or below which npm installed node-llama-cpp")
    texts: int = Field(8, ge=1, description="contest: prompts at most, a count")
    text_tokens: int = Field(128, ge=1, description="contest: tokens of a text at most")
    tokens_per_forward: float = Field(4.0, gt=0.0, description="TPF of the scripted policy for untrained weights")
    threads: tuple[int, ...] = Field((1,), description="torch thread counts whose single forwards are timed as well")
    clock: Literal["wall", "cpu"] = Field(
        "wall", description="what seconds are: wall clock, or this process's CPU seconds (a shared machine, one thread)"
    )
    repeats: int = Field(
        3, ge=1, description="interleaved repeats: of single forwards the fastest counts, of the contest the median"
    )

    @model_validator(mode="after")
    def _scripts_come_out_even(self) -> "DecodeBenchConfig":
        for block in self.blocks if self.scripted else ():
            odd = [f"{one} tokens per forward" for one in self.scripted if block % one]
            places = {"prompt_tokens": self.prompt_tokens, "text_tokens": self.text_tokens}
            odd += [f"{name} {size}" for name, size in places.items() if size % block]
            if odd:
                raise ValueError(
                    f"scripted: {odd[0]} and blocks of {block} do not divide evenly, and a script would not keep its"
                    " tokens per forward; give counts that divide the blocks, and texts of whole blocks"
                )
        return self


class PrefixBenchConfig(Section):
    """bench prefix: a long beginning that many requests share, and the turns of a chat."""

    prefix_tokens: int = Field(1000, ge=1, description="length of the shared beginning, tokens")
    question_tokens: int = Field(24, ge=1, description="length of what differs behind it, tokens")
    tokens_per_forward: float = Field(
        4.0, ge=0.0, description="TPF of the scripted policy that fills the first block; 0: the mode's own policy"
    )
    repeats: int = Field(5, ge=1, description="requests behind the shared beginning after the first, in turns; medians")
    questions: tuple[str, ...] = Field(
        ("Name three colours of the rainbow.", "Which of them is the warmest?", "Write one sentence about it."),
        description="the user's turns of the chat; empty: none",
    )
    turn_tokens: int = Field(48, ge=1, description="tokens of a reply at most")
    clock: Literal["wall", "cpu"] = Field("wall", description="seconds of the clock, or of the processor")


class GpuBenchConfig(Section):
    """bench gpu."""

    seconds: float = Field(480.0, gt=0.0, description="after this time no further part is begun, seconds")


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

    part: str = Field("", description="what is timed: data, objective, train, decode, forward, prefix or gpu")
    data: DataBenchConfig = DataBenchConfig()
    train: TrainBenchConfig = TrainBenchConfig()
    decode: DecodeBenchConfig = DecodeBenchConfig()
    prefix: PrefixBenchConfig = PrefixBenchConfig()
    gpu: GpuBenchConfig = GpuBenchConfig()
    forward: ForwardBenchConfig = ForwardBenchConfig()
