# Export `huggingface`: a plain folder that transformers loads without this package, with a model card.
# Entry points: Huggingface.
# What the plain folder cannot say (mask id, block size, shift, thresholds) stands in hildanext.json and in the card.
"""Export plugin huggingface."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hildanext.disk import replacing, write_atomic
from hildanext.registry import Plugin

CARD = """---
library_name: transformers
tags: [diffusion, block-diffusion, hildanext]
---
# {name}

A block-diffusion language model, converted from {parent} by hildanext.

| fact | value |
| --- | --- |
| architecture | {architecture} |
| parameters | {parameters:,} |
| dtype | {dtype} |
| [MASK] id | {mask_id} |
| block size | {block} tokens |
| logit shift | {shift} |

`AutoModelForCausalLM.from_pretrained` loads the weights; its own `generate` decodes left to right, which is not how
this model was trained. `hildanext generate --model <this folder> --prompt ...` decodes by blocks.
"""


class Huggingface(Plugin):
    """Weights as safetensors in one dtype, tokenizer, config.json, hildanext.json, README.md."""

    dtype: Literal["as_is", "float32", "bfloat16", "float16"] = Field("as_is", description="dtype of the weights")
    card: bool = Field(True, description="write README.md, the model card")
    decode: dict[str, dict[str, Any]] = Field(
        {}, description="calibrated values by mode, written over those of hildanext.json"
    )

    def write(self, loaded: Any, folder: Path) -> list[str]:
        """Write the folder, replacing it; returns the names of its files. DecodeError for a mode or value that no
        request could be decoded with."""
        import torch

        from hildanext.decoding.modes import checked
        from hildanext.models.save import write_model

        denoiser, meta = loaded.denoiser, loaded.meta
        meta = meta.model_copy(update={"decode": meta.decode | checked(_over(meta.decode, self.decode))})
        if self.dtype != "as_is":
            denoiser = denoiser.to(getattr(torch, self.dtype))
        with replacing(folder) as fresh:
            write_model(denoiser, loaded.tokenizer, fresh, meta, loaded.path)
            if self.card:
                write_atomic(fresh / "README.md", self._card(loaded, folder.name))
        return sorted(path.name for path in folder.iterdir())

    def _card(self, loaded: Any, name: str) -> str:
        from hildanext.models.denoiser import network

        denoiser, meta = loaded.denoiser, loaded.meta
        return CARD.format(
            name=name, parent=meta.parent or "an unnamed checkpoint", architecture=type(network(denoiser)).__name__,
            parameters=sum(parameter.numel() for parameter in denoiser.parameters()),
            dtype=str(denoiser.dtype).removeprefix("torch."), mask_id=denoiser.mask_id,
            block=meta.block or "not recorded", shift=denoiser.shift,
        )  # fmt: skip


def _over(own: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {mode: {**own.get(mode, {}), **values} for mode, values in new.items()}
