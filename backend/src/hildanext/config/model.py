# Settings of the model: which folder, dtype, attention backend, mask token, memory limit, adapters, new models.
# Entry points: ModelConfig, NewModelConfig, AdapterConfig, EmbeddingNoiseConfig.
# `path` is a Hugging Face folder, a GGUF file, "tiny" / "tiny-parent" (the bundled pair), or "new" for random weights.
"""Model section of the configuration."""

from typing import Any, Literal

from pydantic import Field

from hildanext.config.base import SEEDS, Section


class NewModelConfig(Section):
    """Shape of a randomly initialised model (`model.path` is "new")."""

    model_type: str = Field("qwen3", description="family of transformers, a causal language model")
    config: dict[str, Any] = Field({}, description="further fields of that family's configuration, as in config.json")
    tokenizer: str = Field("", description="folder of the tokenizer; the vocabulary size comes from it")
    hidden: int = Field(128, ge=8, description="hidden width D")
    layers: int = Field(4, ge=1, description="decoder layers")
    heads: int = Field(4, ge=1, description="query heads; must divide hidden")
    kv_heads: int = Field(2, ge=1, description="key and value heads; must divide heads")
    head_dim: int = Field(0, ge=0, description="width of one head, even; 0: hidden / heads")
    ffn: int = Field(384, ge=8, description="width of the feed-forward layer")
    init_std: float = Field(0.0, ge=0, description="standard deviation of fresh weights; 0: 0.7 / sqrt(hidden)")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary positions")
    window: int = Field(512, ge=8, description="longest sequence, tokens")
    seed: int = Field(0, ge=0, lt=SEEDS, description="seed of the initial weights")
    tied: bool = Field(True, description="share the output matrix with the embedding")


class AdapterConfig(Section):
    """Low-rank adapters instead of full fine-tuning (needs the `quant` extra)."""

    kind: Literal["none", "lora", "qlora", "lora8bit"] = Field(
        "none", description="none: train all weights; lora; qlora: on 4-bit NF4 weights; lora8bit: on 8-bit weights"
    )
    rank: int = Field(16, ge=1, description="rank of the update")
    alpha: float = Field(32.0, gt=0, description="update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability of dropping an adapter input")
    targets: tuple[str, ...] = Field((), description="names of linear layers; empty: all but the output matrix")
    start: str = Field("", description="folder of adapters over model.path to go on training; empty: new ones")


class EmbeddingNoiseConfig(Section):
    """Gaussian noise on the [MASK] embedding output during the first steps (LLaDA2.0 sec. 7.1)."""

    steps: int = Field(0, ge=0, description="optimiser steps over which the noise falls linearly to 0; 0: off")
    sigma: float = Field(0.0, ge=0, description="standard deviation per component; 0: median row norm / sqrt(D)")


class ModelConfig(Section):
    """The model that is converted, tuned, evaluated or served."""

    path: str = Field(
        "tiny", description="Hugging Face folder, GGUF file, 'tiny' (bundled child), 'tiny-parent' (AR parent) or 'new'"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="weights and compute; auto says its reason"
    )
    device: str = Field("auto", description="'auto', 'cpu', 'cuda', 'cuda:1', ...")
    attention: Literal["auto", "dense", "sliced", "flex"] = Field("auto", description="training attention backend")
    shift: Literal["auto", "none", "clean"] = Field(
        "auto", description="logit i predicts token i (none) or i+1 (clean stream); auto: as recorded, else none"
    )
    block_grid: Literal["auto", "global", "per_document"] = Field(
        "auto", description="where blocks start in a packed row; auto: as recorded with the model, else global"
    )
    mask_id: int | None = Field(None, ge=0, description="id of [MASK]; null: recorded one, else the first free row")
    edit_actions: bool = Field(
        False, description="give the model rows for DELETE and INSERT where it has none, to train with edit_actions"
    )
    key_scores: str = Field(
        "", description="file of trained key scores (compressor kvzap); empty: the one in the model folder, if any"
    )
    override_recorded: bool = Field(
        False, description="let mask_id and shift differ from those hildanext.json records of a model's training"
    )
    max_vram_pct: float = Field(0.85, gt=0, le=1, description="share of a device's memory a run may need")
    trust_remote_code: bool = Field(False, description="run code from the model folder; off unless said here")
    adapter: AdapterConfig = AdapterConfig()
    embedding_noise: EmbeddingNoiseConfig = EmbeddingNoiseConfig()
    new: NewModelConfig = NewModelConfig()
