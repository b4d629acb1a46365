# Settings of convert-wsd, sft, on-policy and merge-checkpoints: data, steps, block sizes, optimiser, checkpoints.
# Entry points: TrainConfig, LayoutConfig, ReplayConfig, LadderConfig, OptimizerConfig, ObjectiveSection, RolloutConfig.
# Counts are optimiser steps unless a description says otherwise.
"""Training sections of the configuration."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from hildanext.config.base import PluginSection, Section

SMALLEST_CLIP = 1e-6
Rate = Annotated[float, Field(ge=0, lt=1)]


def _clip(value: float) -> float:
    if 0 < value < SMALLEST_CLIP:
        raise ValueError(f"should be 0, no clipping, or at least {SMALLEST_CLIP:g}: smaller gradients train nothing")
    return value


class ObjectiveSection(PluginSection):
    """The training objective: {"type": plugin of core/objectives, ...fields}."""

    kind: ClassVar[str] = "objectives"


class LadderConfig(Section):
    """Warm-up, stable and decay stages of the block size ; 0 stands for the whole window L. Source: LLaDA2.0
    arXiv:2512.15745 sec. 4.1."""

    warmup: tuple[int, ...] = Field((1, 4, 32, 64, 0), description="block sizes of the warm-up, tokens; 0 is L")
    stable: tuple[int, ...] = Field((0,), description="block sizes of the stable stage, tokens; 0 is L")
    decay_to: int = Field(32, ge=1, description="last block size of the halving decay, tokens")
    shares: tuple[float, float, float] = Field(
        (0.3, 0.4, 0.3), description="shares of steps (and so of tokens): warm-up, stable, decay; split evenly in each"
    )
    fixed: int | None = Field(None, ge=0, description="one block size for the whole run, tokens; 0 is L; null: ladder")


class OptimizerConfig(Section):
    """Optimiser, learning-rate schedule, parameter groups."""

    name: Literal["adamw", "muon", "adamw8bit", "lion8bit"] = Field(
        "adamw", description="muon: hidden matrices by Muon, the rest by AdamW; the 8-bit ones need bitsandbytes"
    )
    muon: float = Field(6.5, gt=0, description="muon: factor on the learning rate of the hidden matrices")
    orthogonal: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="muon: dtype of its orthogonalisation; auto: bfloat16 where the processor has units for it"
    )
    lr: float = Field(3e-4, ge=1e-12, le=1e3, description="peak learning rate")
    betas: tuple[Rate, Rate] = Field((0.9, 0.95), description="decay rates of the moment estimates, in [0, 1)")
    eps: float = Field(1e-8, gt=0, le=1, description="added to the root of the second moment")
    weight_decay: float = Field(0.1, ge=0, le=1e3, description="decoupled decay of matrices; vectors have none")
    clip: Annotated[float, AfterValidator(_clip)] = Field(
        1.0, ge=0, description="largest norm of the gradient, at least 1e-6; 0: no clipping"
    )
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field("cosine", description="after the warm-up")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the rate rises linearly from 0")
    decay: float = Field(0.2, gt=0, le=1, description="share of the steps in which wsd falls at the end")
    final: float = Field(0.1, ge=0, le=1, description="rate at the end as a share of the peak (not for constant)")
    attention: float = Field(1.0, ge=0, description="factor on the learning rate of the attention layers")
    mlp: float = Field(1.0, ge=0, description="factor on the learning rate of the feed-forward layers")
    embedding: float = Field(1.0, ge=0, description="factor on the rate of the embedding and the output matrix")
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description="further factors by pattern, multiplied: a part (attention, mlp, embeddings, other), layers as"
        " 'layers 1-8', or a parameter's name with * and ?",
    )
    freeze: tuple[str, ...] = Field((), description="patterns, as in `rates`, of what does not train")
    freeze_embeddings: bool = Field(False, description="do not train the embedding and the output matrix")

    @model_validator(mode="after")
    def _reaches_its_peak(self) -> "OptimizerConfig":
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(
                f"schedule wsd: warmup {self.warmup:g} + decay {self.decay:g} is more than all steps, and lr is never"
                " reached; give shares of 1 or less together"
            )
        return self


class RolloutConfig(Section):
    """on-policy: how many prompts the model answers at a time, and how long the answers may be."""

    prompts: int = Field(128, ge=1, description="prompts answered by one model state, a multiple of a step's rows")
    first: int = Field(100, ge=1, description="longest answer of the first rollout, tokens")
    last: int = Field(0, ge=0, description="longest answer after the ramp, tokens; 0: what the window leaves")
    ramp: int = Field(100, ge=0, description="rollouts over which the longest answer grows linearly; 0: none")


class ReplayConfig(Section):
    """Rows of earlier data in every batch."""

    data: str = Field("", description="folder of tokenised shards; empty: the rows this run has seen before")
    split: str = Field("train", pattern=r"^[\w][\w.-]*$", description="which shards of the folder")
    share: float = Field(0.2, gt=0, lt=1, description="share of every batch that is replayed")


class LayoutConfig(Section):
    """A layout of ranks, whose product is their number; ddp is all of them in replicate, fsdp2 all in fsdp."""

    tp: int = Field(1, ge=1, description="ranks that share every matrix of a layer, and the rows")
    ep: int = Field(1, ge=1, description="ranks that share the experts, each with rows of its own")
    fsdp: int = Field(1, ge=1, description="ranks that share weights and optimiser, each with rows of its own")
    replicate: int = Field(1, ge=1, description="copies of all that, each with rows of its own")
    sp: int = Field(1, ge=1, description="ranks that share the positions of the same rows")

    @property
    def ranks(self) -> int:
        """All of them, a count."""
        return self.tp * self.ep * self.fsdp * self.replicate * self.sp


class TrainConfig(Section):
    """One training run: data, length, batches, checkpoints, evaluation."""

    data: str = Field(
        "", description="folder of tokenised shards, or a place for fsspec; empty: <paths.data>/tokenized/<data.name>"
    )
    prepare: bool = Field(False, description="run prepare-data and tokenize first where the shards are missing")
    split: str = Field("train", pattern=r"^[\w][\w.-]*$", description="shards to train on: train | sft_train")
    eval_split: str = Field("eval", pattern=r"^[\w][\w.-]*$", description="shards to evaluate on: eval | sft_eval")
    rows: int = Field(0, ge=0, description="rows trained on, from the first on, a count; 0: all")
    steps: int = Field(1000, ge=1, description="optimiser steps")
    tokens: int = Field(0, ge=0, description="tokens to train on, instead of steps; 0: steps decide")
    batch: int = Field(8, ge=1, description="sequences per micro-batch and rank")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimiser step and rank")
    workers: int = Field(0, ge=0, description="processes that read rows ahead; 0: none")
    shorten: float = Field(0.0, ge=0, le=1, description="share of rows cut to a random length (LLaDA: 0.01)")
    replay: tuple[ReplayConfig, ...] = Field((), description="earlier data mixed into every batch")
    parallel: Literal["none", "ddp", "fsdp2"] | LayoutConfig = Field(
        "none", description="how ranks of torchrun share the work; or {tp, ep, fsdp, replicate, sp}, ranks of each"
    )
    gradient_checkpointing: bool = Field(False, description="recompute layers in the backward pass to save memory")
    autocast: Literal["none", "bfloat16"] = Field("none", description="dtype of matrix products under fp32 weights")
    resume: str = Field(
        "", description="'latest' (of --run-dir), 'auto' (that if there is one) or a checkpoint folder; empty: anew"
    )
    override_recorded: bool = Field(
        False, description="let a resumed run have another optimizer, dtype, model or data than its checkpoint records"
    )
    checkpoint_every: int = Field(200, ge=0, description="steps between checkpoints; 0: only when stopped")
    checkpoint_beside: bool = Field(
        False, description="ranks that share weights write checkpoints in threads while training goes on"
    )
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept, a count")
    keep_best: int = Field(1, ge=0, description="checkpoints of lowest evaluation NLL kept, a count")
    skip_nonfinite: int = Field(0, ge=0, description="steps with NaN or infinite loss skipped before the run stops")
    eval_every: int = Field(200, ge=0, description="steps between evaluations; 0: only at start and end")
    eval_rows: int = Field(16, ge=1, description="rows of the evaluation shards used, a count")
    eval_samples: int = Field(2, ge=1, description="noise draws per evaluated row and block size, a count")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="metrics also go there; metrics.jsonl is always written"
    )
    panels_every: int = Field(
        0, ge=0, description="steps between pictures in panels/ of the run, which trackers get too; 0: none"
    )
    parity: bool = Field(True, description="check the parent's logits through the adapter before a conversion")

    def shared_by(self, ranks: int) -> int:
        """Of so many ranks those among which weights, gradients and optimiser are shared, a count."""
        if isinstance(self.parallel, LayoutConfig):
            sizes = self.parallel
            return sizes.fsdp * sizes.ep * (sizes.sp if sizes.fsdp > 1 else 1)
        return ranks if self.parallel == "fsdp2" else 1

    def ranks(self, started: int) -> int:
        """Those that the numbers of the layout make; without numbers those started. A count."""
        return self.parallel.ranks if isinstance(self.parallel, LayoutConfig) else started

    def apart(self, ranks: int) -> int:
        """Of so many ranks those that have rows of their own, a count."""
        sizes = self.parallel
        return ranks // (sizes.tp * sizes.sp) if isinstance(sizes, LayoutConfig) else ranks

    @property
    def pieces(self) -> int:
        """Ranks that share the positions of a row, a count."""
        return self.parallel.sp if isinstance(self.parallel, LayoutConfig) else 1

    @model_validator(mode="after")
    def _leaves_room(self) -> "TrainConfig":
        total = sum(one.share for one in self.replay)
        if total >= 1:
            raise ValueError(f"replay: the shares add up to {total:g}; leave something for the rows trained on")
        return self
