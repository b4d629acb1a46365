# Settings of serve: engines in order of preference, address, limits, jobs.
# Entry points: ServeConfig, EngineSection.
# Limits are in bytes, tokens, requests or seconds as each description says. The API key is never a setting: it comes
# from the environment variable HILDANEXT_API_KEY or from api_key_file, so it is in no saved configuration.
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
        min_length=1,
        description="engines, tried in this order; the first that opens serves",
    )
    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs an API key")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 picks a free one")
    hosts: tuple[str, ...] = Field((), description="further Host names answered to, as a reverse proxy sends them")
    api_key_file: str | None = Field(None, description="file whose first line is the API key; HILDANEXT_API_KEY wins")
    insecure: bool = Field(False, description="listen beyond loopback without an API key")
    name: str = Field("", description="model name in /v1/models; empty: the model folder's name")
    models: tuple[str, ...] = Field(
        (), max_length=64, description="models chosen by name, FOLDER or NAME=FOLDER each; empty: model.path alone"
    )
    model_bytes: int = Field(
        0, ge=0, description="several models: bytes of those loaded together; 0: model.max_vram_pct of the memory"
    )
    body_bytes: int = Field(1 << 20, ge=1024, description="request body at most, bytes")
    body_seconds: float = Field(10.0, gt=0.0, description="time a client has to send its body, seconds")
    prompt_characters: int = Field(100_000, ge=1, description="prompt or messages at most, characters")
    new_tokens: int = Field(4096, ge=1, description="max_new_tokens of one request at most, tokens")
    samples: int = Field(8, ge=1, description="n of one request at most, a count")
    queue: int = Field(64, ge=1, description="requests waiting or decoding at most, a count; more get 429")
    request_seconds: float = Field(300.0, gt=0.0, description="time one request may take, seconds; then 504")
    drain_seconds: float = Field(
        0.0, ge=0.0, description="time after SIGTERM in which /health says draining and all is still served, seconds"
    )
    shutdown_seconds: int = Field(10, ge=0, description="time open requests have to finish at shutdown, seconds")
    jobs: bool = Field(True, description="accept jobs over HTTP")
    jobs_at_once: int = Field(1, ge=1, description="jobs running together, a count; the rest wait in order")
    jobs_queued: int = Field(32, ge=1, description="jobs waiting at most, a count; more get 429")
    cancel_seconds: float = Field(120.0, gt=0.0, description="time a cancelled job has to save a checkpoint, seconds")
