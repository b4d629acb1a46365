# Export `gguf`: one file that llama.cpp reads, left to right by itself and by blocks under engine `llamacpp`.
# Entry points: Gguf.
# models/gguf_writing.py writes it.
"""Export plugin gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hildanext.registry import Plugin


class Gguf(Plugin):
    """A folder with one GGUF file, a card and the licence. Needs the extra `gguf`."""

    dtype: Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"] = Field(
        "f16", description="how matrices are stored; vectors are float32; rows of no multiple of 32 stay f16"
    )

    def write(self, loaded: Any, folder: Path) -> list[str]:
        """Write the folder, replacing it; returns the names of its files. ModelError for a family, rotary scaling or
        layer that the format cannot hold, and where the package is missing."""
        from hildanext.models.gguf_writing import write_gguf

        return write_gguf(loaded, folder, self.dtype)
