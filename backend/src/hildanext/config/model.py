# Settings of the model: which folder, dtype, attention backend, mask token, adapters.
# Entry points: ModelConfig.
# `path` is a Hugging Face folder, or "tiny" / "tiny-parent" for the bundled pair.
"""Model section of the configuration."""

from typing import Literal

from pydantic import Field

from hildanext.config.base import Section


class ModelConfig(Section):
    """The model that is converted, tuned, evaluated or served."""

    path: str = Field(
        "tiny", description="Hugging Face folder, or 'tiny' (bundled child), 'tiny-parent' (bundled AR parent)"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="weights and compute; auto says its reason"
    )
    device: str = Field("auto", description="'auto', 'cpu', 'cuda', 'cuda:1', ...")
    attention: Literal["auto", "dense", "sliced", "flex"] = Field("auto", description="training attention backend")
    shift: Literal["none", "clean"] = Field(
        "none", description="whether logit i predicts token i (none) or i+1 (clean stream)"
    )
    block_grid: Literal["global", "per_document"] = Field("global", description="where blocks start in a packed row")
    trust_remote_code: bool = Field(False, description="run code from the model folder; off unless said here")
