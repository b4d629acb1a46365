# Settings of generation: mode presets, thresholds, length, sampling, and the limits of the decoder.
# Entry points: DecodeConfig, PolicySection, Share (a number in [0, 1]).
# tau_* are probabilities; "preset" takes the mode's or the model folder's own value; tau_edit null: no editing.
"""Decoding section of the configuration."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hildanext.config.base import PluginSection, Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class PolicySection(PluginSection):
    """How tokens are chosen: {"type": plugin of decoding/policies, ...fields}."""

    kind: ClassVar[str] = "policies"


class BenchDecodeConfig(Section):
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


class DecodeConfig(Section):
    """generate: defaults of a request, then the limits of the decoder."""

    mode: str = Field("Q_MODE", description="S_MODE (speedy) | Q_MODE (quality) | CONSERVATIVE")
    policy: PolicySection | None = Field(None, description="another policy than the mode's threshold_edit")
    tau_mask: Share | Literal["preset"] = Field("preset", description="probability a mask must exceed to be filled")
    tau_edit: Share | Literal["preset"] | None = Field(
        "preset", description="probability a rewrite must exceed; 0: edit freely; null: no editing"
    )
    max_post_steps: Annotated[int, Field(ge=0)] | Literal["preset"] = Field(
        "preset", description="looks at a block without masks, a count; 0: edits only while masks remain"
    )
    max_new_tokens: int = Field(128, ge=1, description="tokens to generate at most")
    seed: int = Field(0, description="seed of sampling")
    temperature: float = Field(0.0, ge=0.0, description="0: greedy")
    top_k: int = Field(0, ge=0, description="tokens kept before sampling, a count; 0: all")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="probability mass kept before sampling")
    cfg_scale: float = Field(0.0, ge=0.0, description="guidance away from the prompt-less prediction; 0: none")
    confidence: Literal["sampled", "raw"] = Field(
        "sampled", description="distribution a confidence is read from: after temperature and cuts, or raw"
    )
    block: int = Field(0, ge=0, description="block size, tokens; 0: the model folder's, else 32")
    window: int = Field(0, ge=0, description="prompt + new tokens at most; 0: the model's own window")
    cache: bool = Field(True, description="keep keys and values of committed blocks; off recomputes everything")
    fuse: bool = Field(True, description="commit a block in the same forward as the next block's first step")
    requests: int = Field(8, ge=1, description="requests decoded together at most, a count")
    step_tokens: int = Field(2048, ge=1, description="positions of one forward at most, a count")
    kv_bytes: int = Field(4 << 30, ge=1, description="bytes of keys and values at most")
    bench: BenchDecodeConfig = BenchDecodeConfig()
    int8: bool = Field(False, description="int8 dynamic quantisation of the linear layers (CPU, approximate weights)")
