# Export `onnx`: one step of the denoiser as an ONNX graph, for onnxruntime and whatever else reads one.
# Entry points: Onnx.
# models/onnx writes it; docs/onnx.md says what goes into a step and what comes out.
"""Export plugin onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hildanext.registry import Plugin


class Onnx(Plugin):
    """model.onnx, model.onnx.data, onnx.json, tokenizer, hildanext.json, README.md; Llama- and Qwen-shaped models."""

    weights: Literal["float32", "int8", "int4"] = Field(
        "float32", description="weights of the matrix products; int8, int4: quantised in groups, the rest stays float32"
    )
    group: Literal[16, 32, 64, 128, 256] | None = Field(
        None, description="weights that share a scale, a count; null: 64 of int8, 32 of int4"
    )
    outputs: Literal["logits", "statistics"] = Field(
        "logits", description="what a step gives; statistics: best token, its probability, entropy, second probability"
    )

    def write(self, loaded: Any, folder: Path) -> list[str]:
        """Write the folder, replacing it; returns the names of its files. ModelError for a network that does not
        export, without the packages of the extra `onnx`, or where the graph is not what PyTorch computes."""
        from hildanext.models.onnx.folder import Form, write_onnx

        return write_onnx(loaded, folder, Form(self.weights, self.group, self.outputs))
