# Settings of serve: engines in order of preference, address, limits, jobs.
# Entry points: ServeConfig, EngineSection.
# Limits are in bytes, tokens, requests or seconds as each description says.
"""Serving section of the configuration."""

from typing import ClassVar

from pydantic import Field

from hildanext.config.base import PluginSection, Section


class EngineSection(PluginSection):
    """An engine: {"type": plugin of engines, ...fields}."""

    kind: ClassVar[str] = "engines"


class ServeConfig(Section):
    """serve: where it listens and what it allows."""

    engines: tuple[EngineSection, ...] = Field(
        (EngineSection(type="dinfer"), EngineSection(type="transformers"), EngineSection(type="tiny")),
        description="engines, tried in this order; the first that opens serves",
    )
    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs an API key")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 picks a free one")
