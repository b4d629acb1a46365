# onnx.json: what a graph does not say itself and its runner must know.
# Entry points: Facts, MODEL, FACTS.
# [MASK], block size and shift stand in hildanext.json, as in every model folder.
"""Facts of an ONNX export."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hildanext.errors import ModelError

MODEL, FACTS = "model.onnx", "onnx.json"


class Facts(BaseModel):
    """What stands in onnx.json beside the graph. weights: float32, int8 or int4; outputs: logits or statistics;
    window: longest sequence, 0 unknown; widths and counts as named."""

    model_config = ConfigDict(extra="forbid")
    opset: int
    weights: str
    outputs: str
    vocabulary: int
    layers: int
    kv_heads: int
    head_dim: int
    window: int
    end_ids: list[int]

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """The facts of an exported folder. ModelError where they or the graph are missing or malformed."""
        path = folder / FACTS
        if not path.is_file() or not (folder / MODEL).is_file():
            raise ModelError(
                f"{folder}: no {MODEL} with {FACTS} there; write them with `hildanext export --format onnx`"
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ModelError(f"{path}: {error.errors()[0]['msg']}; export the model again") from error
