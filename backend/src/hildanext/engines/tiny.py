# The bundled model, so that a fresh machine answers something real before any weights are there.
# Entry points: Tiny.
# It never replaces a folder that was asked for, unless `instead` says so.
"""Engine `tiny`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from hildanext.config import Config
from hildanext.engines.protocol import EnginePlugin, Opening, refused
from hildanext.engines.transformers import BUNDLED, dtypes, native
from hildanext.progress import Console


class Tiny(EnginePlugin):
    """Our decoder over the bundled model."""

    instead: bool = Field(False, description="serve the bundled model even where model.path names another")

    def trials(self, config: Config) -> list[Mapping[str, Any]]:
        """Every precision of this device."""
        return dtypes(config)

    def open(self, config: Config, console: Console) -> Opening:
        """Load the bundled model; refuses where another model was asked for."""
        if config.model.path != BUNDLED and not self.instead:
            return refused(f"model.path asks for {config.model.path!r}, and the bundled model would be another one")
        return native(
            "tiny", config.model_copy(update={"model": config.model.model_copy(update={"path": BUNDLED})}), console
        )
