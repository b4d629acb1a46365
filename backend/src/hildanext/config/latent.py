# Settings of latent diffusion models: which type is trained with which fields, and how texts are drawn.
# Entry points: LatentConfig, LatentSection.
# train, optimizer and model say the rest: model.path is the discrete model that a latent one is built on.
"""Latent section of the configuration."""

from typing import ClassVar

from pydantic import Field

from hildanext.config.base import PluginSection, Section


class LatentSection(PluginSection):
    """{"type": plugin of hildanext/latents, ...fields}."""

    kind: ClassVar[str] = "latents"
    by_name: ClassVar[bool] = True


class LatentConfig(Section):
    """latent: what is trained; generate, eval, serve: how a latent model draws."""

    model: LatentSection = Field(LatentSection(type="cola"), description="cola | ldlm | vfm, with its fields")
    steps: int = Field(0, ge=0, description="steps of the sampler, a count; 0: the model's own")
    sampler: str = Field("", description="sampler of a latent model; empty: the model's own")
